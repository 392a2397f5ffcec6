"""Temporary folders of killed runs, `edgeopt.scratch`."""

import subprocess
import sys

import pytest

from edgeopt.scratch import LOCK, ScratchFolder, sweep


def test_a_folder_in_use_is_left_and_one_of_a_dead_owner_is_removed(tmp_path):
    code = f"""
import os
from pathlib import Path
from edgeopt.scratch import ScratchFolder
(ScratchFolder("run-", Path({str(tmp_path)!r})).path / "file").touch()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(tmp_path.iterdir())) == 1
    with ScratchFolder("run-", tmp_path) as alive:
        sweep("run-", tmp_path)
        assert list(tmp_path.iterdir()) == [alive]


@pytest.mark.parametrize("content", [(), ("half.bin",)], ids=["before its lock was made", "while it was deleted"])
def test_a_folder_whose_owner_died_without_a_lock_is_removed(tmp_path, content):
    leftover = tmp_path / "run-abc"
    leftover.mkdir()
    for name in content:
        (leftover / name).touch()
    sweep("run-", tmp_path)
    assert not leftover.exists()


def test_other_folders_stay(tmp_path):
    (tmp_path / "walk-abc").mkdir()
    (tmp_path / "run").mkdir()
    sweep("run-", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "walk-abc"]
    assert not list(tmp_path.rglob(LOCK))
