"""Hostile files: a sample of each kind by default, all of them as a slow test."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("h5py", "onnx", "cv2"):
    pytest.importorskip(package, reason=f"the hostile files are made with {package}")

FOLDER = Path(__file__).parents[1] / "benchmarks" / "hostile"
MODULES = ("case", "damage", "seeds", "bombs", "payloads", "reaching", "documents", "run")


@pytest.fixture(scope="module")
def suite():
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def seeds(suite, tmp_path_factory):
    return suite["seeds"].build(tmp_path_factory.mktemp("seeds"))


def _place(suite, folder, seeds, name):
    (folder / "canary").mkdir(parents=True, exist_ok=True)
    return suite["case"].Place(folder / "files", folder / "canary", seeds, random.Random(name))


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own
def test_a_sample_of_every_kind_is_refused_in_one_line_and_runs_nothing(suite, seeds, tmp_path):
    run = suite["run"]
    opener = run.Opener(tmp_path, seeds)
    found = []
    try:
        for maker in run.MAKERS:
            name = f"{maker.__module__}.{maker.__name__}"
            place = _place(suite, tmp_path / name, seeds, name)
            cases = [c for c in _some(maker(place)) if c.opener != "artifact" and "Loop" not in c.name]
            chosen = [c for c in cases if not c.harmless] or cases
            found.append(run.attempt(opener, place.chance.choice(chosen), place))
    finally:
        opener.close()
    assert len(found) == len(run.MAKERS)
    assert not [(o.case.name, o.verdict, o.words) for o in found if not o.good]


def _some(cases):
    """Take the first two dozen: the rest of a maker's files need not be written."""
    return [case for case, _ in zip(cases, range(24), strict=False)]


@pytest.mark.parametrize("name", ["damage.flipped", "damage.wrong_extension", "documents.tables"])
def test_the_same_seed_makes_the_same_files(suite, seeds, tmp_path, name):
    module, function = name.split(".")
    made = []
    for folder in ("a", "b"):
        place = _place(suite, tmp_path / folder, seeds, name)
        cases = _some(getattr(suite[module], function)(place))
        mark = str(tmp_path / folder).encode()
        made.append([(c.name, c.path.read_bytes().replace(mark, b"")) for c in cases])
    assert made[0] == made[1]


def test_there_are_more_than_500_of_every_kind_that_the_result_counts(suite):
    document = json.loads((FOLDER / "result.json").read_text())
    everything = document["rows"][-1]
    assert everything["kind"] == "all" and everything["told"] + everything["died"] >= 500
    for column in ("accepted", "unclear", "crashed", "executed"):
        assert [row[column] for row in document["rows"]] == [0] * len(document["rows"]), column
    names = [(c["kind"], c["name"]) for c in document["cases"]]
    assert len(set(names)) == len(names)
    assert suite["run"].markdown(document) == (FOLDER / "result.md").read_text()


@pytest.mark.parametrize("maker", ["payloads.pickles", "documents.settings"])
def test_the_command_line_says_one_line(suite, seeds, tmp_path, edgeopt, maker):
    module, function = maker.split(".")
    place = _place(suite, tmp_path, seeds, maker)
    case = next(c for c in getattr(suite[module], function)(place) if not c.harmless)
    extra = ["--arch", f"{seeds['arch.py']}:build", "--input-shape", "1,1,8,8"] if case.path.suffix == ".pt" else []
    ran = edgeopt("convert", case.path, *extra, "--to", "onnx", "-o", tmp_path / "out")
    assert ran.code in (1, 2) and ran.out == "" and case.path.name in ran.error
    assert not list(place.canary.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_of_them(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--out", str(tmp_path), "--records", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert json.loads((tmp_path / "result.json").read_text())["rows"][-1]["executed"] == 0
