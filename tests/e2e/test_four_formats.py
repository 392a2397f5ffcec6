"""The digit classifier, to four formats in float and in int8."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

FORMATS = ["onnx", "litert", "coreml", "executorch"]
PRECISIONS = ["fp32", "static_wi8_ai8"]
NOISE = re.compile(r"warn|onnxscript|tensorflow|site-packages|cpuinfo|XNNPACK|INFO|torch_export", re.IGNORECASE)


@pytest.fixture(scope="module")
def made(edgeopt, root, tmp_path_factory):
    card = root / "models/mnist-mobilenet/card.yaml"
    out = tmp_path_factory.mktemp("mnist") / "bundle"
    return out, edgeopt("convert", card, "--precision", ",".join(PRECISIONS), "--json", "-o", out, timeout=500)


@pytest.fixture(scope="module")
def document(made):
    out, ran = made
    assert ran.code == 0, ran.err
    assert json.loads((out / "manifest.json").read_bytes()) == ran.json
    return ran.json


def test_every_format_in_every_precision_is_made_and_passes(document):
    made = [(a["format"], a["precision"]) for a in document["artifacts"]]
    assert sorted(made) == sorted((f, p) for f in FORMATS for p in PRECISIONS)
    assert document["failures"] == []
    assert all(a["parity"]["passed"] for a in document["artifacts"])


def test_float_artifacts_compute_what_pytorch_computes(document):
    for artifact in document["artifacts"]:
        parity = artifact["parity"]
        if artifact["precision"] == "fp32":
            assert parity["snr_db"] >= 100, artifact["format"]
            assert parity["agreement"] == 1 and parity["top1"] == parity["reference_top1"]
            assert artifact["not_quantized"] == []


def test_int8_artifacts_are_small_and_agree(document):
    size = {(a["format"], a["precision"]): a["size_bytes"] for a in document["artifacts"]}
    for artifact in document["artifacts"]:
        if artifact["precision"] == "static_wi8_ai8":
            assert artifact["parity"]["agreement"] >= 0.95 and artifact["parity"]["snr_db"] >= 15
            assert size[artifact["format"], "static_wi8_ai8"] < 0.6 * size[artifact["format"], "fp32"]
            assert all("weights are float" not in line for line in artifact["not_quantized"])


def test_the_formats_that_lower_one_quantized_graph_agree_on_what_it_computes(document):
    snr = [a["parity"]["snr_db"] for a in document["artifacts"] if a["precision"] == "static_wi8_ai8"]
    assert max(snr) - min(snr) < 8


def test_real_digits_were_used_apart_from_those_that_calibrated(document):
    assert document["data"]["inputs"] == "data" and document["data"]["calibrated"] == 100
    assert all(a["parity"]["samples"] == 32 for a in document["artifacts"])
    assert all(a["parity"]["top1"] >= 0.9 for a in document["artifacts"])


def test_every_file_has_its_digest(made, document):
    out, _ = made
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert set(files) == {*document["files"], "manifest.json"}
    for name, record in document["files"].items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == record["sha256"]
        assert files[name].stat().st_size == record["size_bytes"]


def test_inputs_and_outputs_have_the_cards_names(document):
    for artifact in document["artifacts"]:
        assert [(i["name"], i["shape"]) for i in artifact["inputs"]] == [("image", [1, 1, 28, 28])]
        assert [(o["name"], o["shape"]) for o in artifact["outputs"]] == [("logits", [1, 10])]


def test_the_terminal_saw_progress_and_nothing_else(made):
    _, ran = made
    names = {"model", "original", "static_wi8_ai8 graph"} | {f"{f} {p}" for f in FORMATS for p in PRECISIONS}
    names |= {f"{f} speed" for f in FORMATS if f != "coreml"}
    assert not NOISE.search(ran.err), ran.err
    for line in ran.err.splitlines():
        assert line.partition(":")[0] in names, line


def test_other_tools_read_the_files(made):
    """An app team's own runtime, without edgeopt, gives the recorded answer."""
    import onnxruntime

    out, _ = made
    session = onnxruntime.InferenceSession(out / "mnist-mobilenet.fp32.onnx", providers=["CPUExecutionProvider"])
    answer = session.run(["logits"], {"image": np.zeros((1, 1, 28, 28), np.float32)})[0]
    assert answer.shape == (1, 10) and np.isfinite(answer).all()


def test_nothing_of_this_machine_is_in_the_bundle(made, root):
    out, _ = made
    for path in out.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            assert str(root).encode() not in content and b"site-packages" not in content, path


def test_verify_repeats_the_result_from_the_bundle(edgeopt, root, made, document):
    out, _ = made
    card = root / "models/mnist-mobilenet/card.yaml"
    ran = edgeopt(
        "verify", out / "mnist-mobilenet.static_wi8_ai8.tflite", "--against", card, "--samples", "16", "--json"
    )
    assert ran.code == 0 and ran.json["parity"]["passed"] and ran.json["parity"]["samples"] == 16
    assert ran.json["parity"]["runtime"] == "LiteRT"
