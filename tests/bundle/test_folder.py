"""An output folder is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeopt.bundle.folder import staged
from edgeopt.bundle.manifest import keep_logs, write_manifest
from edgeopt.core.errors import OutputError


def write(out, text="one", **more):
    with staged(out) as bundle:
        for name, content in {"net.onnx": text, **more}.items():
            path = bundle / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        write_manifest(bundle, {"text": text})


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_whole(out):
    """Every file that the manifest names is there with its digest, and nothing else is."""
    files = json.loads((out / "manifest.json").read_bytes())["files"]
    found = content(out)
    assert set(found) == {"manifest.json", *files}
    for name, record in files.items():
        assert record["sha256"] == hashlib.sha256(found[name]).hexdigest()
        assert record["size_bytes"] == len(found[name])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "place" / "bundle"


def test_a_bundle_is_written_with_digests_of_every_file(out):
    write(out, **{"pkg/Data/weights/weight.bin": "w", "logs/x.log": "l"})
    assert_whole(out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["bundle"]


def test_an_older_bundle_is_replaced_as_a_whole(out):
    write(out, "one", extra="x")
    write(out, "two")
    assert_whole(out)
    assert content(out)["net.onnx"] == b"two" and not (out / "extra").exists()
    assert sorted(p.name for p in out.parent.iterdir()) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_leaves_the_older_bundle(out, error):
    write(out)
    before = content(out)
    with pytest.raises((type(error), OutputError)), staged(out) as bundle:
        (bundle / "half").write_text("half")
        raise error
    assert content(out) == before and sorted(p.name for p in out.parent.iterdir()) == ["bundle"]


@pytest.mark.parametrize("create", ["empty folder", "absent", "desktop file"])
def test_an_empty_place_is_used(out, create):
    if create != "absent":
        out.mkdir(parents=True)
    if create == "desktop file":
        (out / ".DS_Store").write_text("")
    write(out)
    assert_whole(out)


@pytest.mark.parametrize("foreign", ["thesis.doc", "sub/thesis.doc", ".hidden", "manifest.json"])
def test_a_folder_of_someone_else_is_refused_and_untouched(out, foreign):
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty and holds no edgeopt bundle|which edgeopt did not write"):
        write(out)
    assert content(out) == {foreign: b"mine"}


@pytest.mark.parametrize("document", ["[]", "{}", '{"files": 3}', '{"files": null}', '"x"', '{"files": {"a": 1}}'])
def test_a_manifest_of_another_tool_is_no_bundle(out, document):
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(document)
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(OutputError):
        write(out)
    assert (out / "thesis.doc").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link", "link to a file", "empty folder of mine"])
def test_what_was_added_to_a_bundle_is_not_lost(out, tmp_path, kind):
    write(out)
    if kind == "file":
        (out / "notes.txt").write_text("mine")
    elif kind == "link":
        (tmp_path / "data").mkdir()
        (out / "data").symlink_to(tmp_path / "data")
    elif kind == "link to a file":
        (out / "data").symlink_to(tmp_path / "nowhere")
    else:
        (out / "empty").mkdir()
        write(out)
        return
    with pytest.raises(OutputError, match="which edgeopt did not write"):
        write(out, "two")
    assert content(out)["net.onnx"] == b"one"


def test_a_file_or_a_link_at_the_place_is_refused(out, tmp_path):
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(OutputError, match="is a file; -o names a folder"):
        write(out)
    out.unlink()
    write(tmp_path / "real")
    out.symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="is a link"):
        write(out)
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="is a link"):
        write(out)
    assert out.is_symlink()


def test_a_foreign_file_that_appears_meanwhile_is_not_lost(out):
    with pytest.raises(OutputError), staged(out) as bundle:
        write_manifest(bundle, {})
        out.mkdir()
        (out / "mine").write_text("mine")
    assert content(out) == {"mine": b"mine"}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/bundle: cannot be written: \S*/file is no folder"):
        write(tmp_path / "file" / "bundle")


def test_files_have_the_rights_of_any_new_file(out, tmp_path):
    write(out)
    (tmp_path / "usual").mkdir()
    assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_logs_of_failures_move_into_the_bundle(out, tmp_path):
    (tmp_path / "onnx-fp32.log").write_text("words")
    failures = [{"log": str(tmp_path / "onnx-fp32.log")}, {"log": None}, {"log": str(tmp_path / "gone.log")}]
    with staged(out) as bundle:
        keep_logs(failures, bundle, out)
        write_manifest(bundle, {})
    assert failures[0]["log"] == str(out / "logs" / "onnx-fp32.log")
    assert (out / "logs" / "onnx-fp32.log").read_text() == "words" and failures[1]["log"] is None
    assert_whole(out)


WRITER = """
import sys
from pathlib import Path
from edgeopt.bundle.folder import staged
from edgeopt.bundle.manifest import write_manifest

print("ready", flush=True)
for round in range(1_000_000):
    with staged(Path(sys.argv[1])) as bundle:
        (bundle / "pkg").mkdir()
        for i in range(3):
            (bundle / "pkg" / f"{i}.bin").write_bytes(bytes([round % 256]) * 200_000)
        (bundle / "net.onnx").write_bytes(bytes([round % 256]) * 50_000)
        write_manifest(bundle, {"round": round})
"""


def _kill_at_random(out, times, seed):
    generator = random.Random(seed)
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if out.exists():
            assert_whole(out)
            first = (out / "net.onnx").read_bytes()[:1]
            assert all(set(data) == set(first) for name, data in content(out).items() if name != "manifest.json")
    write(out)
    assert_whole(out)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"], "leftovers of killed runs are swept"


def test_killed_at_any_moment_the_old_or_the_new_bundle_is_there(out):
    _kill_at_random(out, 25, seed=0)


@pytest.mark.slow
def test_killed_very_often(out):
    _kill_at_random(out, 400, seed=1)


def test_writers_at_once_leave_one_whole_bundle(out):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    deadline = time.monotonic() + 3
    seen = 0
    while time.monotonic() < deadline:
        try:
            json.loads((out / "manifest.json").read_bytes())
            seen += 1
        except FileNotFoundError:
            continue  # the folder was exchanged between two system calls of this reader
    alive = [w.poll() for w in writers]
    for writer in writers:
        writer.kill()
        _, errors = writer.communicate()
        assert b"Traceback" not in errors, errors.decode()
    assert alive == [None] * 3 and seen > 3
    assert_whole(out)
    write(out)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


def test_a_live_runs_files_are_not_swept(out):
    with staged(out) as bundle:
        (bundle / "mine").write_text("mine")
        write(out, "another run")
        assert (bundle / "mine").exists()
        write_manifest(bundle, {})
    assert set(content(out)) == {"mine", "manifest.json"}


def test_the_working_folder_itself_can_be_the_place(out, monkeypatch):
    out.mkdir(parents=True)
    monkeypatch.chdir(out)
    write(Path())
    assert_whole(out)


def test_names_with_signs_that_globs_know(tmp_path):
    out = tmp_path / "a[1]*?"
    write(out)
    write(out, "two")
    assert_whole(out)
    other = tmp_path / ".a[1]*?.edgeopt-left"
    other.mkdir()
    (other / ".lock").touch()
    write(out)
    assert not other.exists()


def test_digests_match_an_independent_tool(out):
    write(out)
    told = subprocess.run(["sha256sum", "net.onnx"], cwd=out, capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == json.loads((out / "manifest.json").read_bytes())["files"]["net.onnx"]["sha256"]


def test_what_other_verbs_wrote_into_a_bundle_goes_with_it(out):
    write(out)
    for name in ("eval.json", "bench.json", "report.html"):
        (out / name).write_text("of the old bundle")
    write(out, "two")
    assert_whole(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write(out, "three")
