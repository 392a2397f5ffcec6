"""How long a comparison goes on, on a device whose noise is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeopt.benchmarking import Request, compare_latency, measure_latency
from edgeopt.core.errors import ArtifactError, UsageError

THEIRS = """
import numpy as np

def connect(address, **how):
    return Device(*map(float, address.split("x")))

class Device:
    name = "theirs"

    def __init__(self, ratio, noise):
        self.ratio, self.generator, self.noise = ratio, np.random.default_rng(0), noise
        self.jobs, self.cleaned = [], False

    def probe(self):
        return {"cpu": "Theirs", "machine": "", "cpus": 1}

    def push(self, path):
        return f"/there/{path.name}"

    def run(self, job, *, what, timeout_s, log):
        self.jobs.append(job)
        samples = []
        for artifact in job["artifacts"]:
            scale = self.ratio if "mine" in artifact["path"] else 1.0
            scale *= np.exp(self.noise * self.generator.standard_normal())
            wall = (1e6 * scale * (1 + 0.01 * self.generator.standard_normal(job["samples"]))).astype(int).tolist()
            samples.append({"wall_ns": wall, "cpu_ns": wall, "inner_batch": 1, "warm_up_ns": [1], "load_ns": 1,
                            "first_ns": 1, "output_sha256": artifact["path"]})
        return {"launch": {"samples": samples, "import_ns": 1, "cold_start_ns": 1, "memory_before_load_bytes": 1,
                           "peak_memory_bytes": 2, "energy_uj": None, "environment": {}}}

    def cleanup(self):
        self.cleaned = True
"""


@pytest.fixture
def device():
    space = {}
    exec(THEIRS, space)
    return space["Device"]


@pytest.fixture
def files(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    return tmp_path / "mine.onnx", tmp_path / "other.onnx"


def test_a_clear_difference_ends_after_the_first_look(device, files, tmp_path):
    pair = compare_latency(*files, device(1.2, 0.003), Request(), logs=tmp_path)
    assert pair.looks == (7,)
    assert len(pair.launches) == 7
    assert (pair.artifact.path, pair.against.path) == tuple(map(str, files))


def test_an_unclear_one_goes_on(device, files, tmp_path):
    noisy = device(1.06, 0.08)
    pair = compare_latency(*files, noisy, Request(max_ratio=1.0), logs=tmp_path)
    assert pair.looks[:3] == (7, 10, 15)
    assert len(pair.launches) == pair.looks[-1]
    assert pair.max_ratio == 1.0


def test_every_other_launch_loads_them_in_the_other_order(device, files, tmp_path):
    ours = device(1.5, 0.0)
    pair = compare_latency(*files, ours, Request(), logs=tmp_path)
    orders = [[a["path"] for a in job["artifacts"]] for job in ours.jobs]
    assert orders[0] == orders[1][::-1] == orders[2]
    assert all(launch.samples[0].output_sha256 == "/there/mine.onnx" for launch in pair.launches)


def test_time_that_is_over_ends_it_without_a_verdict(device, files, tmp_path):
    pair = compare_latency(*files, device(1.0, 0.3), Request(max_seconds=1e-9), logs=tmp_path)
    assert pair.looks == (3,)
    assert len(measure_latency(files[0], device(1.0, 0.3), Request(max_seconds=1e-9), logs=tmp_path).launches) == 1
    assert len(measure_latency(files[0], device(1.0, 0.3), Request(launches=4), logs=tmp_path).launches) == 4


def test_gates_hold_what_they_promise(device, files, tmp_path):
    """With extension included, where launches differ by 2 %."""
    words = {1.0: [], 1.05: []}
    for ratio, found in words.items():
        from edgeopt.bench.statistics import compare_measurement

        for seed in range(60):
            noisy = device(ratio, 0.02)
            noisy.generator = np.random.default_rng(seed)
            request = Request(max_ratio=1.0, pairs=10, max_seconds=0.5)
            found.append(compare_measurement(compare_latency(*files, noisy, request, logs=tmp_path)).gate)
    assert words[1.0].count("fail") <= 1
    assert words[1.05].count("pass") == 0
    assert words[1.05].count("fail") > 30


def test_a_format_that_is_not_timed_here(device, tmp_path, files):
    (tmp_path / "net.mlpackage").mkdir()
    with pytest.raises(UsageError, match="Core ML packages run on Apple's devices only"):
        compare_latency(tmp_path / "net.mlpackage", files[1], device(1, 0), Request(), logs=tmp_path)


def test_a_changed_file_of_a_bundle_is_refused(device, tmp_path, files):
    record = {"format": "onnx", "precision": "fp32", "path": "mine.onnx", "size_bytes": 4, "sha256": "0", "parity": {}}
    (tmp_path / "manifest.json").write_text(json.dumps({"model": {"name": "n"}, "artifacts": [record]}))
    with pytest.raises(ArtifactError, match="sha256 differs"):
        measure_latency(files[0], device(1, 0), Request(), logs=tmp_path)


@pytest.mark.parametrize(("address", "verdict", "code"), [("1.0x0.2", "inconclusive", 4), ("1.5x0.01", "slower", 0)])
def test_a_device_of_a_third_party(edgeopt, files, tmp_path, address, verdict, code):
    (tmp_path / "their_device.py").write_text(THEIRS)
    metadata = tmp_path / "their_device-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-device\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edgeopt.devices]\ntheirs = their_device\n")
    path = f"{tmp_path}:{edgeopt.environment.get('PYTHONPATH', '')}"
    command = edgeopt.with_environment(PYTHONPATH=path)
    ran = command(
        "bench", files[0], "--against", files[1], "--on", f"theirs:{address}", "--max-seconds", 0.001, "--json"
    )
    assert ran.code == code, ran.err
    assert ran.json["comparisons"][0]["summary"]["verdict"] == verdict
    assert ran.json["device"]["cpu"] == "Theirs"
