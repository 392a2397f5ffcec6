"""Every runtime runs sound artifacts, and tells of broken ones in one line."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from edgeopt import plugins
from edgeopt.core.errors import ArtifactError, EdgeoptError
from edgeopt.core.formats import FORMATS
from edgeopt.worker import Limits, Worker

RUNTIMES = {form.runtime: name for name, form in FORMATS.items()}


@pytest.fixture(scope="module")
def workers():
    """One worker per runtime; whatever crashes or hangs it costs a second."""
    running = {}

    def get(runtime):
        if runtime not in running:
            running[runtime] = Worker(threads=1, limits=Limits(timeout_s=60))
        return running[runtime]

    yield get
    for worker in running.values():
        worker.close()


@pytest.fixture
def execute(workers, tmp_path):
    """Run an artifact on one image; returns its output, or raises in one line."""

    def execute(runtime, path, image):
        folder = tmp_path / "inputs"
        folder.mkdir(exist_ok=True)
        np.save(folder / "image.npy", image[None])
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        arguments = {
            "runtime": runtime,
            "artifact": str(path),
            "inputs": [{"name": "image", "shape": list(image.shape), "dtype": "float32"}],
            "outputs": [{"name": "scores", "shape": [1, 5], "dtype": "float32"}],
            "inputs_folder": str(folder),
            "folder": str(tmp_path / "outputs"),
            "options": {},
        }
        workers(runtime).call(
            "edgeopt.tasks.execute:execute",
            arguments,
            what=f"running {path.name}",
            log=tmp_path / "log",
            failure=ArtifactError,
        )
        return np.load(tmp_path / "outputs" / "scores.npy")[0]

    return execute


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request):
    return request.param


def test_every_runtime_plugin_is_covered():
    assert set(plugins.names("runtimes")) == {*RUNTIMES, "torch"}


def test_an_artifact_gives_what_the_model_gives(runtime, artifact, execute, image, expected):
    np.testing.assert_allclose(execute(runtime, artifact(RUNTIMES[runtime]), image), expected, rtol=1e-4, atol=1e-5)


def test_the_original_program(program, execute, image, expected):
    np.testing.assert_allclose(execute("torch", program, image), expected, rtol=1e-5, atol=1e-6)


def test_an_input_of_another_shape_is_one_line(runtime, artifact, execute, image):
    with pytest.raises(ArtifactError, match=r"has shape \[.*\], the original's image \[1, 3, 8, 9\]") as caught:
        execute(runtime, artifact(RUNTIMES[runtime]), np.zeros((1, 3, 8, 9), np.float32))
    assert len(str(caught.value).splitlines()) == 1


def files_of(path):
    """Return the files that a runtime reads."""
    if not path.is_dir():
        return [path]
    return sorted((p for p in path.rglob("*") if p.is_file() and not p.name.startswith("executorch_debug")), key=str)


def copy(path, out):
    shutil.rmtree(out, ignore_errors=True)
    if path.is_dir():
        shutil.copytree(path, out)
    else:
        out.unlink(missing_ok=True)
        shutil.copyfile(path, out)
    return out


def judged(execute, runtime, path, image):
    """Run a damaged artifact; returns the one line told, or None where it still ran."""
    try:
        execute(runtime, path, image)
    except EdgeoptError as error:
        assert len(str(error).splitlines()) == 1 and "broken" in str(error), error
        return str(error)
    return None


def test_truncated_artifacts(runtime, artifact, execute, image, tmp_path):
    sound = artifact(RUNTIMES[runtime])
    suffix = FORMATS[RUNTIMES[runtime]].suffix
    for number, file in enumerate(files_of(sound)):
        size = file.stat().st_size
        for length in (0, 7, size // 2, size * 9 // 10):
            broken = copy(sound, tmp_path / f"broken{suffix}")
            files_of(broken)[number].write_bytes(file.read_bytes()[:length])
            assert judged(execute, runtime, broken, image) is not None, f"{length} of {size} bytes of {file.name}"


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_flipped_bits(runtime, artifact, execute, image, tmp_path, seed):
    sound = artifact(RUNTIMES[runtime])
    suffix = FORMATS[RUNTIMES[runtime]].suffix
    generator = random.Random(seed)
    told = 0
    for _ in range(25 if seed else 8):
        broken = copy(sound, tmp_path / f"broken{suffix}")
        file = generator.choice(files_of(broken))
        content = bytearray(file.read_bytes())
        for _ in range(generator.choice([1, 4, 30])):
            content[generator.randrange(min(len(content), 1500))] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        told += judged(execute, runtime, broken, image) is not None
    assert told, "damage to the first bytes was never noticed"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(300), b"PK\x03\x04" + bytes(300)])
def test_another_kind_of_file(runtime, execute, image, tmp_path, content):
    path = tmp_path / f"broken{FORMATS[RUNTIMES[runtime]].suffix}"
    if runtime == "coreml":
        path.mkdir()
        (path / "Manifest.json").write_bytes(content)
    else:
        path.write_bytes(content)
    assert judged(execute, runtime, path, image) is not None


def test_an_artifact_of_another_format_under_the_name(runtime, artifact, execute, image, tmp_path):
    other = "litert" if RUNTIMES[runtime] != "litert" else "executorch"
    path = tmp_path / f"broken{FORMATS[RUNTIMES[runtime]].suffix}"
    if runtime == "coreml":
        pytest.skip("a package is a folder")
    shutil.copyfile(artifact(other), path)
    assert judged(execute, runtime, path, image) is not None
