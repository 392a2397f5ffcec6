"""`edgeopt bench` on files and bundles of its own making."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.core.measurement import Measurement, PairedMeasurement

QUICK = ("--launches", 3, "--max-seconds", 6)


def network(path, layers, seed=0):
    """Write an ONNX file of so many equal matrix products."""
    generator = np.random.default_rng(seed)
    names = ["x", *(f"h{i}" for i in range(layers))]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    weights = [
        helper.make_tensor(f"w{i}", TensorProto.FLOAT, [128, 128], generator.normal(0, 0.08, (128, 128)).ravel())
        for i in range(layers)
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [64, 128]) for n in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def make_bundle(folder, layers=8, coreml=False):
    folder.mkdir()
    path = network(folder / "net.fp32.onnx", layers)
    record = {
        "format": "onnx",
        "precision": "fp32",
        "path": path.name,
        "size_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parity": {},
    }
    artifacts = [record]
    if coreml:
        (folder / "net.fp32.mlpackage").mkdir()
        artifacts.append(record | {"format": "coreml", "path": "net.fp32.mlpackage", "sha256": ""})
    (folder / "manifest.json").write_text(json.dumps({"model": {"name": "net"}, "artifacts": artifacts, "files": {}}))
    return folder


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", coreml=True)


def test_a_bundle_is_measured_and_its_samples_kept(edgeopt, bundle):
    ran = edgeopt("bench", bundle, *QUICK, "--json")
    assert ran.code == 0, ran.err
    document = ran.json
    assert document == json.loads((bundle / "bench.json").read_text())
    (record,) = document["measurements"]
    measurement = Measurement.from_json(record)
    assert measurement.artifact.name == "onnx fp32"
    assert len(measurement.launches) == 3
    summary = record["summary"]
    assert summary["median"]["low"] <= summary["median"]["value"] <= summary["median"]["high"]
    assert summary["cold_start"]["value"] > summary["first"]["value"]
    assert summary["peak_memory_bytes"] > summary["model_memory_bytes"] > 0
    assert document["device"]["cpus"] >= 1
    (left,) = document["not_measured"]
    assert "Core ML packages run on Apple's devices only" in left["reason"]
    assert "launch 1/3" in ran.err


def test_the_table_and_where_the_samples_are(edgeopt, bundle, tmp_path):
    ran = edgeopt("bench", bundle / "net.fp32.onnx", *QUICK, "-o", tmp_path / "samples.json")
    assert ran.code == 0, ran.err
    assert "cold start" in ran.out
    assert "onnx fp32" in ran.out
    assert "energy" in ran.out
    assert f"raw samples: {tmp_path / 'samples.json'}" in ran.out
    assert not (bundle / "bench.json").exists()


def test_a_comparison_is_made_in_pairs(edgeopt, bundle, tmp_path):
    slower = make_bundle(tmp_path / "slower", layers=16)
    ran = edgeopt("bench", slower, "--against", bundle, "--max-seconds", 20, "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.json["comparisons"]
    pair = PairedMeasurement.from_json(record)
    assert all(len(launch.samples) == 2 for launch in pair.launches)
    assert record["summary"]["verdict"] == "slower"
    assert 1.3 < record["summary"]["ratio"] < 3
    assert ran.json["measurements"] == []


def test_an_inconclusive_comparison_has_a_code_of_its_own(edgeopt, bundle):
    # One pair in each of three launches of a fast file cannot show that it equals itself within 2.5 %.
    ran = edgeopt("bench", bundle, "--against", bundle, "--launches", 3, "--max-seconds", 0.001, "--json")
    verdict = ran.json["comparisons"][0]["summary"]["verdict"]
    assert ran.code == (4 if verdict == "inconclusive" else 0)
    assert len(ran.json["comparisons"][0]["launches"]) == 3


def test_real_inputs_are_taken_from_the_bundle(edgeopt, bundle):
    np.savez(bundle / "inputs.npz", x=np.ones((64, 128), np.float32))
    ran = edgeopt("bench", bundle, "--launches", 1, "--json")
    assert ran.json["measurements"][0]["inputs"] == str(bundle / "inputs.npz")
    np.savez(bundle / "inputs.npz", x=np.ones((1, 128), np.float32))
    ran = edgeopt("bench", bundle, "--launches", 1)
    assert ran.code == 2
    assert ran.error == "input x: shape [1, 128] does not fit [64, 128]"


def test_a_broken_artifact_does_not_lose_the_others(edgeopt, bundle, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((bundle / "net.fp32.onnx").read_bytes()[:5000])
    ran = edgeopt("bench", broken, bundle / "net.fp32.onnx", "--launches", 1, "--json")
    assert ran.code == 1
    (failure,) = ran.json["failures"]
    assert failure["reason"].startswith("broken.onnx: ")
    assert len(ran.json["measurements"]) == 1


def test_a_file_that_is_not_what_the_manifest_says(edgeopt, bundle):
    network(bundle / "net.fp32.onnx", 3)
    ran = edgeopt("bench", bundle, "--launches", 1, "--json")
    assert ran.code == 1
    assert "is not the file that manifest.json beside it describes" in ran.json["failures"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bench"], "Missing argument"),
        (["bench", "nothing.onnx"], "nothing.onnx: no such file"),
        (["bench", "nothing"], "not an artifact that edgeopt can execute"),
        (["bench", "BUNDLE", "--on", "locl"], "no device called 'locl'; did you mean 'local'?"),
        (["bench", "BUNDLE", "--on", "local:x"], "--on local takes no address"),
        (["bench", "BUNDLE/net.fp32.mlpackage"], "Core ML packages run on Apple's devices only"),
        (["bench", "BUNDLE", "--against", "nothing.onnx"], "nothing.onnx: no such file"),
        (["bench", "BUNDLE", "--inputs", "nothing.npz"], "nothing.npz: no such file"),
        (["bench", "BUNDLE", "--threads", "0"], "0 is not in the range"),
        (["bench", "BUNDLE", "--max-seconds", "0"], "0.0 is not in the range"),
    ],
)
def test_wrong_requests_are_one_line(edgeopt, bundle, arguments, told):
    ran = edgeopt(*(a.replace("BUNDLE", str(bundle)) for a in arguments))
    assert ran.code == 2
    assert told in ran.error


@pytest.mark.parametrize("output", ["BUNDLE", "BUNDLE/manifest.json", "BUNDLE/net.fp32.onnx/deep/file.json"])
def test_an_output_that_cannot_be_written_is_told_before_measuring(edgeopt, bundle, output):
    place = output.replace("BUNDLE", str(bundle))
    ran = edgeopt("bench", bundle, "-o", place)
    assert ran.code == 1
    assert ran.error.startswith(f"{place}: ")
    assert "launch" not in ran.err
    assert ran.seconds < 10
