from __future__ import annotations

import json
from pathlib import Path

import pytest

FORMATS = {
    "onnx": "onnx_file", "litert": "litert_file", "coreml": "coreml_package", "executorch": "executorch_file",
}  # fmt: skip
SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.mark.parametrize("name", FORMATS)
def test_same_network_has_the_same_macs_and_parameters_everywhere(
    request, inspectors, name, small_macs, small_parameters
):
    path = request.getfixturevalue(FORMATS[name])
    found = inspectors[name](path)
    assert found.kind == name
    assert found.macs == small_macs
    assert sum(layer.macs or 0 for layer in found.layers) == small_macs
    assert found.parameters == pytest.approx(small_parameters, abs=16)  # batch norm folds into 8 biases
    assert found.weights_by_dtype == {"float32": found.parameters}
    assert found.weight_bytes == 4 * found.parameters
    assert [s.shape for s in found.inputs] == [(1, 3, 16, 16)]
    assert [s.shape for s in found.outputs] == [(1, 10)]
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    assert found.size_bytes == sum(f.stat().st_size for f in files)
    record = found.to_json()
    assert json.loads(json.dumps(record)) == record
    assert set(record["layers"][0]) == {"name", "op", "parameters", "macs", "output_shape"}


def test_portable_kernels_count_like_delegated_ones(
    inspectors, executorch_file, portable_executorch_file, small_macs, small_parameters
):
    portable = inspectors["executorch"](portable_executorch_file)
    assert portable.macs == small_macs
    assert portable.parameters == small_parameters + 16  # batch norm is not folded, its statistics are stored
    assert all(op.startswith("aten::") for op in portable.ops)
    assert any("0 operators in delegates" in note for note in portable.notes)
    delegated = inspectors["executorch"](executorch_file)
    assert delegated.ops["xnnpack.Conv2d"] == 2
    assert delegated.ops["xnnpack.DepthwiseConv2d"] == 1


def test_compressed_core_ml_weights_are_counted_as_stored(
    inspectors, coreml_package, quantized_coreml_package, palettized_coreml_package, small_macs
):
    plain, int8, palette = (
        inspectors["coreml"](p) for p in (coreml_package, quantized_coreml_package, palettized_coreml_package)
    )
    assert plain.macs == int8.macs == palette.macs == small_macs
    assert plain.parameters == int8.parameters == palette.parameters
    assert int8.weights_by_dtype["int8"] > 0.9 * plain.parameters
    assert palette.weights_by_dtype["uint4"] > 0.9 * plain.parameters
    assert palette.weight_bytes < int8.weight_bytes < plain.weight_bytes
    assert int8.ops["constexpr_affine_dequantize"] == 5


def test_quantized_litert_of_the_mlperf_suite(inspectors):
    path = SHARED / "models" / "mlperf-tiny" / "resnet8_cifar10_reference_int8.tflite"
    if not path.exists():
        pytest.skip("needs the shared models")
    found = inspectors["litert"](path)
    assert found.macs == 12_501_632
    assert found.weights_by_dtype == {"int8": 77_360, "int32": 346}
    (image,) = found.inputs
    assert (image.dtype, image.scale, image.zero_point) == ("int8", 1.0, -128)
