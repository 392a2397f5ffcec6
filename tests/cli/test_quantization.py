"""Precisions and quantization options, as a user asks for them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core.formats import FORMATS, PRECISIONS
from edgeopt.core.quantization import scheme_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    random = np.random.default_rng(0)
    np.savez(path, input=random.normal(size=(24, 1, 8, 8)).astype(np.float32), label=np.arange(24) % 5)
    return path


@pytest.fixture(scope="module")
def made(edgeopt, tiny, data, tmp_path_factory):
    precisions = ",".join(p for p in PRECISIONS if p in FORMATS["onnx"].precisions)
    out = tmp_path_factory.mktemp("made") / "bundle"
    return edgeopt(
        "convert", *tiny, "--to", "onnx", "--precision", precisions, "--data", data, "--samples", 8,
        "--calibration-samples", 16, "--json", "-o", out,
    )  # fmt: skip


def test_every_precision_of_a_format_is_made_and_verified(made):
    assert made.code == 0, made.err
    assert [a["precision"] for a in made.json["artifacts"]] == list(FORMATS["onnx"].precisions)
    assert all(a["parity"]["passed"] for a in made.json["artifacts"])


def test_integer_artifacts_are_timed_against_float_and_tell_their_operators(made):
    for artifact in made.json["artifacts"]:
        if scheme_of(artifact["precision"]).kind == "float":
            assert artifact["speed"] is None and artifact["quantization"] is None
        else:
            assert artifact["speed"]["ratio"] > 0 and artifact["speed"]["pairs"] >= 5
            assert artifact["integer_ops"] is not None and artifact["float_ops"] is not None
            assert artifact["quantization"]["keep_float"] == []


def test_layers_kept_in_float_are_named_and_float(edgeopt, tiny, data, tmp_path):
    ran = edgeopt(
        "convert", *tiny, "--to", "onnx", "--precision", "static_wi8_ai8", "--data", data, "--keep-float", "3",
        "--json", "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (artifact,) = ran.json["artifacts"]
    assert artifact["quantization"]["keep_float"] == ["module.3"]
    assert any("Gemm" in line or "MatMul" in line for line in artifact["not_quantized"])


def test_a_layer_that_is_not_there_is_told(edgeopt, tiny, data, tmp_path):
    ran = edgeopt(
        "convert", *tiny, "--to", "onnx", "--precision", "static_wi8_ai8", "--data", data, "--keep-float", "module.33",
        "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert ran.code != 0 and "no layer is called 'module.33'; did you mean 'module.3'" in ran.err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", ["static_wi8_ai8", "dynamic_wi8_afp32"])
@pytest.mark.parametrize(("target", "largest"), [("linux-x86_64", 63), ("linux-x86_64-vnni", 127)])
def test_weights_leave_room_where_sixteen_bit_sums_would_saturate(
    edgeopt, tiny, data, tmp_path, precision, target, largest
):
    from edgeopt.exporters.onnx_weights import stored_weights

    ran = edgeopt(
        "convert", *tiny, "--to", "onnx", "--target", target, "--precision", precision, "--data", data, "--no-speed",
        "--json", "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (artifact,) = ran.json["artifacts"]
    stored = stored_weights(tmp_path / "bundle" / artifact["path"])
    assert stored and all(np.abs(w.values.astype(int)).max() == largest for w in stored)
    assert artifact["quantization"]["weight_bits"] == (7 if largest == 63 else 8)
    notes = " ".join(artifact["notes"])
    assert ("7 of 8 bits" in notes) == (largest == 63) and ("VNNI saturates" in notes) == (largest == 127)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "onnx", "--precision", "palettized_w4"], "onnx cannot do palettized_w4: only Core ML"),
        (["--to", "coreml", "--precision", "static_wi8_ai16"], "Core ML quantizes activations to 8 bits only"),
        (["--to", "onnx", "--precision", "static_wi8_ai8"], "static int8 is calibrated on real inputs: give --data"),
        (["--quantization", "estimator"], "expected NAME=VALUE"),
        (["--quantization", "estimater=mse"], "unknown option 'estimater'; did you mean 'estimator'"),
        (["--quantization", "estimator=best"], "estimator"),
        (["--quantization", "block_size=7"], "block_size"),
    ],
)
def test_what_cannot_be_done_is_told_before_work_begins(edgeopt, tiny, tmp_path, arguments, told):
    ran = edgeopt("convert", *tiny, *arguments, "-o", tmp_path / "bundle")
    assert ran.code == 2 and told in ran.error
    assert not (tmp_path / "bundle").exists()


def test_the_table_of_precisions_says_what_each_format_supports_and_why_not(edgeopt):
    table = edgeopt("targets", "--precisions", "--json").json["formats"]
    assert set(table) == set(FORMATS)
    for name, row in table.items():
        assert list(row) == list(PRECISIONS)
        assert [p for p, answer in row.items() if answer == "yes" or answer.startswith("from iOS")] == list(
            FORMATS[name].precisions
        )
    told = edgeopt("targets", "--precisions").out
    assert all(precision in told for precision in PRECISIONS) and "only Core ML" in told
