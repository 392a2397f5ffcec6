"""The stand-alone runner, as its own process and with every engine that is installed."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core.measurement import Launch
from edgeopt.devices import runner

QUICK = {"samples": 6, "seconds": 0.2, "warm_up_seconds": 0.01}
FORMATS = {"onnx": "onnxruntime", "litert": "litert", "executorch": "executorch"}


def job(path, engine, **more):
    return {"artifacts": [{"path": str(path), "engine": engine}], **QUICK, **more}


@pytest.mark.parametrize("form", FORMATS)
def test_every_engine_is_timed(form, artifact, run_runner):
    answer = run_runner(job(artifact(form), FORMATS[form], seed=3))
    launch = Launch.from_json(answer["launch"])
    (samples,) = launch.samples
    assert len(samples.wall_ns) == len(samples.cpu_ns) == 6
    assert min(samples.wall_ns) > 0
    assert samples.inner_batch > 1  # the model takes a few microseconds
    assert min(samples.wall_ns) > 20_000
    assert 0 < samples.load_ns < launch.cold_start_ns
    assert 0 < launch.import_ns < launch.cold_start_ns
    assert 10 << 20 < launch.memory_before_load_bytes <= launch.peak_memory_bytes < 2 << 30
    environment = launch.environment
    assert environment["threads"] == 1
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["cpus"] >= 1
    expected = {"onnx": "CPUExecutionProvider", "litert": "XNNPACK", "executorch": "XnnpackBackend"}[form]
    assert [d.partition(":")[0] for d in environment["delegates"][0]] == [expected]
    assert {"cpu", "governor", "mhz", "load_before", "temperature_c", "involuntary_switches"} <= set(environment)


def test_the_seed_decides_the_inputs_and_so_the_outputs(artifact, run_runner):
    def output(seed, **how):
        answer = run_runner(job(artifact("onnx"), "onnxruntime", seed=seed), **how)
        return answer["launch"]["samples"][0]["output_sha256"]

    assert output(3) == output(3, as_file=True) != output(4)


def test_two_engines_in_turns(artifact, run_runner):
    both = [{"path": str(artifact(form)), "engine": FORMATS[form]} for form in ("onnx", "litert")]
    launch = Launch.from_json(run_runner({"mode": "pair", "artifacts": both, **QUICK})["launch"])
    assert [len(s.wall_ns) for s in launch.samples] == [6, 6]
    assert launch.cold_start_ns is None


def test_given_inputs_reach_every_format(artifact, run_runner, image, tmp_path):
    np.savez(tmp_path / "inputs.npz", image=image)
    given = {"inputs": str(tmp_path / "inputs.npz")}
    hashes = {
        Launch.from_json(run_runner(job(artifact("onnx"), "onnxruntime", **given))["launch"]).samples[0].output_sha256,
        Launch.from_json(run_runner(job(artifact("onnx"), "onnxruntime"))["launch"]).samples[0].output_sha256,
    }
    assert len(hashes) == 2
    np.savez(tmp_path / "inputs.npz", image=image[:, :2])
    told = run_runner(job(artifact("onnx"), "onnxruntime", **given))
    assert told == {"error": "input image: shape [1, 2, 8, 8] does not fit [1, 3, 8, 8]", "kind": "job"}


SLOW = [pytest.mark.slow]  # ExecuTorch takes seconds to import


@pytest.mark.parametrize(
    ("form", "content"),
    [(form, content) for form in ("onnx", "litert") for content in (b"", b"nonsense", None)]
    + [("executorch", None)]
    + [pytest.param("executorch", content, marks=SLOW) for content in (b"", b"nonsense")],
)
def test_a_broken_artifact_is_one_line(form, content, artifact, run_runner, tmp_path):
    sound = artifact(form)
    broken = tmp_path / f"broken{sound.suffix}"
    broken.write_bytes(sound.read_bytes()[:40] if content is None else content)
    told = run_runner(job(broken, FORMATS[form]))
    assert told["kind"] == "artifact"
    assert told["error"].startswith(broken.name)
    assert "\n" not in told["error"]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b"", "the job is no JSON"),
        (b"\xff\xfe", "the job cannot be read"),
        ([], "the job is no JSON object"),
        ({"mode": "race"}, "unknown mode 'race'; known: probe, solo, pair"),
        ({"speed": 1}, "unknown key 'speed'; known: "),
        ({"mode": "pair"}, "mode pair takes 2 artifacts"),
        ({"artifacts": ["net.onnx"]}, "an artifact is an object with path and engine"),
        (job("net.onnx", "tensorrt"), "unknown engine 'tensorrt'; known: onnxruntime"),
        (job("net.onnx", "onnxruntime"), "net.onnx: no such file"),
        (job("net.onnx", "onnxruntime", threads=0), "threads must be an integer of at least 1, not 0"),
        (job("net.onnx", "onnxruntime", samples=True), "samples must be an integer of at least 1, not True"),
        (job("net.onnx", "onnxruntime", seconds="long"), "seconds must be a number of seconds, not 'long'"),
        (job(runner.__file__, "onnxruntime", inputs="none.npz"), "inputs none.npz: not an .npz of arrays"),
    ],
)
def test_a_bad_job_is_one_line(document, told, run_runner):
    answer = run_runner(document)
    assert told in answer["error"]
    assert answer["kind"] == ("artifact" if "no such file" in told else "job")


def test_an_engine_that_is_not_there(run_runner, artifact):
    if "tflite-runtime" in runner.versions():
        pytest.skip("tflite-runtime is installed here")
    told = run_runner(job(artifact("onnx"), "tflite-runtime"))
    assert told["kind"] == "engine"
    assert told["error"].startswith("tflite-runtime cannot be imported: ModuleNotFoundError")


def test_a_probe_needs_no_artifact(run_runner):
    environment = run_runner({"mode": "probe"})["environment"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_it_stands_alone_in_the_syntax_of_python_3_8():
    tree = ast.parse(Path(runner.__file__).read_text(), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    engines = {"numpy", "onnxruntime", "torch", "executorch"}
    assert imported - engines <= set(sys.stdlib_module_names)
    at_the_top = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    assert not at_the_top & engines


@pytest.mark.slow
def test_tflite_runtime_under_an_old_python(artifact, run_runner):
    """`python3.8 -m venv V && V/bin/pip install tflite-runtime "numpy<2"`, then EDGEOPT_TFLITE_PYTHON=V/bin/python."""
    python = os.environ.get("EDGEOPT_TFLITE_PYTHON")
    if not python:
        pytest.skip("EDGEOPT_TFLITE_PYTHON names no Python with tflite-runtime, which wants numpy < 2")
    launch = Launch.from_json(run_runner(job(artifact("litert"), "tflite-runtime"), python)["launch"])
    assert "tflite-runtime" in launch.environment["versions"]
    assert len(launch.samples[0].wall_ns) == 6


def test_short_calls_are_timed_in_groups():
    spent, inner = runner.warm_up(lambda: None, 5, 0.005)
    assert len(spent) == runner.WARM_UPS_KEPT
    assert 100 < inner <= runner.MAX_INNER_BATCH
    wall, cpu = runner.timed(lambda: None, inner)
    assert wall > 5_000
    assert cpu > 0


def test_the_loop_adds_less_than_a_microsecond_to_a_short_call():
    def nothing():
        return None

    _, inner = runner.warm_up(nothing, 5, 0.005)
    reported = sorted(runner.timed(nothing, inner)[0] / inner for _ in range(50))
    assert reported[5] < 1_000
    started = time.process_time_ns()
    (samples,) = runner.in_turns([nothing], [inner], 200, 200, 0.0)
    assert (time.process_time_ns() - started) / (len(samples) * inner) < 1_000


def test_outputs_that_are_no_arrays_have_a_hash_too():
    assert runner.digest([[{1: 0.5}], np.zeros(2)]) != runner.digest([[{1: 0.6}], np.zeros(2)])


def test_an_engine_that_fails_later_is_one_line(monkeypatch, tmp_path):
    calls = iter([[np.zeros(1)]] * 3)
    loaded = runner.Loaded(lambda: next(calls), list, [])
    engine = type("Engine", (), {"packages": (), "__init__": lambda *_: None, "load": lambda *_: loaded})
    monkeypatch.setitem(runner.ENGINES, "executorch", engine)
    (tmp_path / "net.pte").write_bytes(b"")
    told = runner.perform(json.dumps(job(tmp_path / "net.pte", "executorch")))
    assert told == {"error": "the timed calls failed: StopIteration:", "kind": "artifact"}


def test_energy_is_read_where_the_machine_offers_it(tmp_path):
    assert runner.read_energy(str(tmp_path / "none")) == {}
    for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text("900\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000\n")
    before = runner.read_energy(str(tmp_path))
    assert set(before) == {"intel-rapl:0", "intel-rapl:1"}  # a package, not its parts again
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("10\n")  # the counter began again
    assert runner.energy_between(before, runner.read_energy(str(tmp_path))) == 50 + 110
    assert runner.energy_between({}, {}) is None


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "low", "high"),
    [((1, None, "n"), "int64", 0.0, 0, 1), ((4, 100), "int8", 0.1, -128, 127), ((4, 100), "float16", 0.0, -6, 6)],
)
def test_random_inputs_follow_the_declaration(shape, dtype, scale, low, high):
    array = runner.Feed(None, 0).array("x", 0, shape, dtype, scale)
    assert array.dtype == dtype
    assert array.shape == tuple(d if isinstance(d, int) else 1 for d in shape)
    assert low <= array.min() <= array.max() <= high


def test_given_inputs_take_the_artifacts_order_and_integers(tmp_path, image):
    np.savez(tmp_path / "x.npz", image=image, mask=np.ones((1, 4), np.int64))
    feed = runner.Feed(str(tmp_path / "x.npz"), 0)
    np.testing.assert_array_equal(feed.array("image", 0, (1, 8, 8, 3), "float32"), image.transpose(0, 2, 3, 1))
    stored = feed.array("other_name", 0, np.array([1, 3, 8, 8]), np.int8, 0.5, 3)
    np.testing.assert_array_equal(stored, np.clip(np.rint(image / 0.5) + 3, -128, 127))
    assert feed.array("input_1", 1, (-1, 4), "int32").dtype == np.int32
    with pytest.raises(runner.Refused, match="no input called 'third' in the file; it has: image, mask"):
        feed.array("third", 2, (1,), "float32")
