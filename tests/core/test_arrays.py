from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.core.arrays import array_file


@given(st.text(max_size=300))
def test_whatever_a_tensor_is_called_its_file_stays_in_the_folder(name):
    path = array_file(Path("/work"), name)
    assert path.parent == Path("/work") and path.suffix == ".npy" and len(path.name) <= 110
    assert path.resolve().parent == Path("/work").resolve() and not path.name.startswith(".")


@given(st.lists(st.text(max_size=20), unique=True, min_size=2, max_size=2))
def test_two_tensors_have_two_files(names):
    assert array_file("w", names[0]) != array_file("w", names[1])


@pytest.mark.parametrize("name", ["image", "input_ids", "input.1", "x-2", "495"])
def test_a_plain_name_is_its_file(name):
    assert array_file("w", name) == Path(f"w/{name}.npy")


def test_class_labels_keep_their_own_file():
    assert array_file("w", "labels").name != "labels.npy"
