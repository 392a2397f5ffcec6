"""Kills, full disks and missing packages: the old bundle or the new one, one line, and nothing left behind."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import subprocess
import time

import pytest


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_whole(out):
    found = content(out)
    document = json.loads(found["manifest.json"])
    assert set(found) == {"manifest.json", *document["files"]}
    for name, record in document["files"].items():
        assert hashlib.sha256(found[name]).hexdigest() == record["sha256"]
    return document


def kill_often(command, arguments, out, no_orphans, times, seed):
    """Kill conversions at moments spread over their whole duration, the last ones near their end."""
    assert command(*arguments).code == 0
    ran = command(*arguments)  # the first one fills the cache, so the second takes as long as those to come
    assert ran.code == 0, ran.err
    generator = random.Random(seed)
    for index in range(times):
        moment = ran.seconds * (generator.uniform(0.1, 0.9) if index % 2 else generator.uniform(0.8, 1.0))
        process, mark = command.start(*arguments)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        no_orphans(mark, 5)
        assert_whole(out)
    assert command(*arguments).code == 0
    assert_whole(out)


def test_killed_at_any_moment(fresh_edgeopt, tiny, no_orphans, tmp_path):
    out = tmp_path / "place" / "bundle"
    arguments = ["convert", *tiny, "--to", "onnx", "--samples", "4", "-o", out]
    kill_often(fresh_edgeopt, arguments, out, no_orphans, 6, seed=0)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"], "the next run sweeps what killed ones left"
    assert fresh_edgeopt.leftovers() == [], "in the temporary folder too"


@pytest.mark.slow
def test_killed_at_very_many_moments(fresh_edgeopt, tiny, no_orphans, tmp_path):
    out = tmp_path / "place" / "bundle"
    arguments = ["convert", *tiny, "--to", "onnx,executorch", "--samples", "4", "--no-cache", "-o", out]
    kill_often(fresh_edgeopt, arguments, out, no_orphans, 25, seed=1)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"] and fresh_edgeopt.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopped_while_several_converters_work(fresh_edgeopt, tiny, no_orphans, marked_processes, tmp_path, number):
    process, mark = fresh_edgeopt.start("convert", *tiny, "-o", tmp_path / "out")
    deadline = time.monotonic() + 30
    while len(marked_processes(mark)) < 6 and time.monotonic() < deadline:  # the command, and workers in pairs
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    started = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    no_orphans(mark, 5)
    assert process.returncode == 130 and err.splitlines()[-1] == "error: stopped", err
    assert not (tmp_path / "out").exists() and fresh_edgeopt.leftovers() == []


def test_two_runs_at_once_into_one_folder(edgeopt, tiny, no_orphans, tmp_path):
    out = tmp_path / "place" / "bundle"
    arguments = ["convert", *tiny, "--to", "onnx", "--samples", "4", "-q", "-o", out]
    running = [edgeopt.start(*arguments) for _ in range(2)]
    for process, mark in running:
        _, err = process.communicate(timeout=120)
        no_orphans(mark, 5)
        assert process.returncode == 0, err
    assert_whole(out)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few hundred kB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = []

    def mount(name, kilobytes):
        place = tmp_path / name
        place.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no small disk can be mounted: {made.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        lazily = 2
        assert ctypes.CDLL(None).umount2(os.fsencode(place), lazily) == 0


BIG = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 10))
"""


@pytest.mark.parametrize(
    "which", ["temporary", *(pytest.param(w, marks=pytest.mark.slow) for w in ("output", "cache"))]
)
def test_a_full_disk_is_one_line(edgeopt, write_model, small_disk, tmp_path, which):
    disk = small_disk("disk", 600)
    out = disk / "out" if which == "output" else tmp_path / "out"
    added = {"temporary": {"TMPDIR": str(disk)}, "cache": {"EDGEOPT_CACHE": str(disk / "cache")}}.get(which, {})
    model = f"{write_model('big', BIG)}:build"
    ran = edgeopt.with_environment(**added)(
        "convert", model, "--input-shape", "1,1,8,8", "--to", "onnx", "--samples", "4", "-q", "-o", out
    )
    if which == "cache":
        assert ran.code == 0, "a cache that cannot keep anything is no failure"
        return
    assert ran.code == 1 and "no space left on the disk" in ran.error and str(disk) in ran.error
    assert not out.exists()
    left = [p for p in disk.rglob("*") if p.is_file()]
    assert left == []


def test_a_full_disk_leaves_the_older_bundle(edgeopt, tiny, write_model, small_disk):
    disk = small_disk("disk", 600)
    options = ["--to", "onnx", "--samples", "4", "-q", "-o", disk / "out"]
    assert edgeopt("convert", *tiny, *options).code == 0
    before = content(disk / "out")
    ran = edgeopt("convert", f"{write_model('big', BIG)}:build", "--input-shape", "1,1,8,8", *options)
    assert ran.code == 1 and "no space left on the disk" in ran.error
    assert content(disk / "out") == before and sorted(p.name for p in disk.iterdir()) == ["out"]


@pytest.fixture
def without(tmp_path):
    """Environment in which packages are as if they were not installed."""

    def hide(*packages):
        folder = tmp_path / "hidden"
        for package in packages:
            (folder / package).mkdir(parents=True)
            (folder / package / "__init__.py").write_text(
                f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
            )
        return {"PYTHONPATH": str(folder)}

    return hide


def test_a_missing_backend_does_not_lose_the_other_formats(edgeopt, tiny, without, tmp_path):
    command = edgeopt.with_environment(**without("coremltools"))
    ran = command("convert", *tiny, "--to", "onnx,coreml", "--samples", "4", "--json", "-o", tmp_path / "out")
    assert ran.code == 1
    assert [a["format"] for a in ran.json["artifacts"]] == ["onnx"] and ran.json["artifacts"][0]["parity"]["passed"]
    (failure,) = ran.json["failures"]
    assert failure["format"] == "coreml"
    assert failure["reason"] == 'coremltools is not installed: pip install "edgeopt[coreml]"'
    assert_whole(tmp_path / "out")


@pytest.mark.parametrize(
    ("package", "form", "extra"),
    [
        pytest.param("litert_torch", "litert", "litert", marks=pytest.mark.slow),
        ("executorch", "executorch", "executorch"),
        pytest.param("onnxscript", "onnx", "onnx", marks=pytest.mark.slow),
    ],
)
def test_every_missing_backend_names_its_extra(edgeopt, tiny, without, tmp_path, package, form, extra):
    command = edgeopt.with_environment(**without(package))
    ran = command("convert", *tiny, "--to", form, "--samples", "4", "-q", "--no-cache", "-o", tmp_path / "out")
    assert ran.code in (1, 2) and f'is not installed: pip install "edgeopt[{extra}]"' in ran.error
    assert not (tmp_path / "out").exists()


DISTANCES = """
class Distances(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x * 2)

def build():
    return Distances()
"""


def test_an_operator_that_one_format_lacks_does_not_lose_the_others(edgeopt, write_model, tmp_path):
    out = tmp_path / "out"
    model = [f"{write_model('distances', DISTANCES)}:build", "--input-shape", "1,4,4"]
    ran = edgeopt("convert", *model, "--to", "onnx,executorch", "--samples", "4", "--json", "-o", out)
    assert ran.code == 1
    assert [(a["format"], a["parity"]["passed"]) for a in ran.json["artifacts"]] == [("executorch", True)]
    (failure,) = ran.json["failures"]
    assert failure["format"] == "onnx" and "cdist" in failure["reason"] and "\n" not in failure["reason"]
    assert failure["log"] == str(out / "logs/onnx-fp32.log") and "cdist" in (out / "logs/onnx-fp32.log").read_text()
    assert_whole(out)
