from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgeopt.core.errors import UsageError
from edgeopt.data import open_data, sample_indices


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", r"none\.csv: no such file or folder$"),
        ("mnist", "no such file or folder; did you mean 'mnist5k'"),
        ("zzz", "no such file or folder; built-in sets: digits, mnist5k"),
        ("t.cvs", "not a kind of data; did you mean '.csv'"),
        ("t.parquet", "not a kind of data; known: .csv, .json, .jsonl"),
    ],
)
def test_an_unknown_name_says_what_there_is(tmp_path, card, rgb, name, message):
    for existing in ("t.cvs", "t.parquet"):
        (tmp_path / existing).touch()
    with pytest.raises(UsageError, match=message):
        open_data(name, card(), rgb, tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path, card, rgb):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UsageError, match="not a regular file"):
        open_data("t.csv", card(), rgb, tmp_path)


def test_a_dot_names_a_folder_that_is_called_like_a_built_in_set(pictures, card, rgb):
    (pictures / "in").rename(pictures / "digits")
    assert open_data("./digits", card(), rgb, pictures)[0].id == "c.bmp"


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"cv2", "torch", "sklearn", "tokenizers", "mlxtend"}
    code = f"import sys, edgeopt.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sampled_indices_are_ascending_distinct_and_the_same_every_time():
    chosen = sample_indices(1000, 100)
    assert chosen == sample_indices(1000, 100) == sorted(set(chosen)) and len(chosen) == 100
    assert chosen != sample_indices(1000, 100, seed=1)
    assert max(chosen) < 1000 and chosen[-1] > 900
    assert sample_indices(5, 100) == [0, 1, 2, 3, 4] and sample_indices(5, 0) == []
