"""Quantized files come back as the float models they were made from, with the ranges of their activations."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeopt.core.errors import SourceError, UnsupportedOpError
from edgeopt.onnx_import import import_onnx

quantization = pytest.importorskip("onnxruntime.quantization", reason="needs onnxruntime's quantization tools")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the exporter and of onnxruntime's quantizer

UINT8, FLOAT, INT8 = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT8


class _Net(nn.Module):
    """Convolutions with activations, a depthwise one, an addition, a concatenation, a gate and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(16, 12, 1, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        y = nn.functional.relu6(self.depthwise(x) * 4) + x
        y = self.point(torch.cat([y, x], 1))
        return self.head((torch.sigmoid(y) * y).mean((2, 3)))


class _Samples(quantization.CalibrationDataReader):
    def __init__(self, x: torch.Tensor) -> None:
        self._left = [{"x": x[i : i + 1].numpy()} for i in range(len(x))]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def _snr_db(reference: torch.Tensor, result: torch.Tensor) -> float:
    error = (reference - result).double().square().sum()
    return float("inf") if error == 0 else float(10 * torch.log10(reference.double().square().sum() / error))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[nn.Module, Path, torch.Tensor]:
    torch.manual_seed(0)
    net, x = _Net().eval(), torch.randn(8, 3, 16, 16)
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x[:1],), str(path), dynamo=False, input_names=["x"], opset_version=17)
    return net, path, x


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_static_int8_becomes_float_again(trained, tmp_path, form, activations, per_channel):
    net, path, x = trained
    out = tmp_path / "q.onnx"
    quantization.quantize_static(
        str(path), str(out), _Samples(x), quant_format=quantization.QuantFormat[form], per_channel=per_channel,
        activation_type=quantization.QuantType[activations], weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    imported = import_onnx(out)
    with torch.no_grad():
        reference, result = net(x[:1]), imported.module(x[:1])
    assert _snr_db(reference, result) > 30  # the rounding of the weights is left
    assert not {torch.round, torch.clamp} & {n.target for n in imported.module.graph.nodes}
    layers = [m for m in imported.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    low, high = imported.ranges["x"]
    assert low == pytest.approx(float(x.min()), rel=0.05)
    assert high == pytest.approx(float(x.max()), rel=0.05)
    assert len(imported.ranges) >= 8
    names = {n.name for n in imported.module.graph.nodes} | {n for n, _ in imported.module.named_modules()}
    assert set(imported.ranges) <= names


def test_dynamic_int8_becomes_float_again(trained, tmp_path):
    net, path, x = trained
    out = tmp_path / "q.onnx"
    quantization.quantize_dynamic(str(path), str(out), weight_type=quantization.QuantType.QInt8)
    imported = import_onnx(out)
    with torch.no_grad():
        assert _snr_db(net(x[:1]), imported.module(x[:1])) > 30
    layers = [m for m in imported.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 4
    assert all(m.bias is not None for m in layers)
    assert not any(n.target is torch.mul and isinstance(n.args[1], float) for n in imported.module.graph.nodes)


def _grid(name, scale, zero, dtype=np.uint8):
    return {f"{name}_s": np.float32(scale), f"{name}_z": np.array(zero, dtype)}


def test_a_range_that_begins_at_zero_cuts_off_what_is_negative(make_model, tmp_path, random):
    nodes = [helper.make_node("QuantizeLinear", ["x", "a_s", "a_z"], ["q"], name="quantize"),
             helper.make_node("DequantizeLinear", ["q", "a_s", "a_z"], ["y"])]  # fmt: skip
    x = torch.linspace(-8, 8, 33)

    def imported(scale, zero):
        path = tmp_path / "m.onnx"
        onnx.save(make_model(nodes, {"x": x.numpy()}, _grid("a", scale, zero)), path)
        return import_onnx(path).module(x)

    torch.testing.assert_close(imported(0.1, 0), x.clamp(min=0))
    torch.testing.assert_close(imported(6 / 255, 0), x.clamp(0, 6))
    torch.testing.assert_close(imported(0.1, 128), x)


def test_quantized_inputs_and_outputs_stay_integers(same_as_ort, make_model):
    q = np.arange(0, 256, 5, dtype=np.uint8)
    nodes = [helper.make_node("DequantizeLinear", ["q", "a_s", "a_z"], ["x"]),
             helper.make_node("Tanh", ["x"], ["t"]),
             helper.make_node("QuantizeLinear", ["t", "b_s", "b_z"], ["y"])]  # fmt: skip
    constants = {**_grid("a", 0.02, 100), **_grid("b", 1 / 64, 0, np.int8)}
    same_as_ort(make_model(nodes, {"q": q}, constants, {"y": INT8}), {"q": q})


def test_layout_operators_pass_between_quantize_and_dequantize(make_model, tmp_path, random):
    x = random(1, 2, 4, 4)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "a_s", "a_z"], ["q"]),
        helper.make_node("Pad", ["q", "pads"], ["p"]),
        helper.make_node("MaxPool", ["p"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("DequantizeLinear", ["t", "a_s", "a_z"], ["y"]),
    ]
    constants = {**_grid("a", 0.02, 128), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    model = make_model(nodes, {"x": x}, constants, opset=19)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    imported = import_onnx(path)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(imported.module(torch.from_numpy(x)).numpy(), expected, atol=0.011)


def test_a_table_dequantized_behind_its_gather_is_an_embedding(same_as_ort, make_model):
    rows = np.array([[0, 3], [2, 2]])
    table = np.random.default_rng(0).integers(0, 255, (4, 6)).astype(np.uint8)
    nodes = [helper.make_node("Gather", ["table", "rows"], ["taken"]),
             helper.make_node("DequantizeLinear", ["taken", "a_s", "a_z"], ["y"])]  # fmt: skip
    model = make_model(nodes, {"rows": rows}, {"table": table, **_grid("a", 0.1, 7)})
    assert any(isinstance(m, nn.Embedding) for m in same_as_ort(model, {"rows": rows}).module.modules())


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_weights_have_scales_per_axis(same_as_ort, make_model, random, axis):
    weight = np.random.default_rng(0).integers(-127, 127, (3, 3)).astype(np.int8)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["real"], axis=axis),
             helper.make_node("MatMul", ["x", "real"], ["y"])]  # fmt: skip
    x = random(2, 3)
    same_as_ort(make_model(nodes, {"x": x}, {"w": weight, "s": np.array([0.1, 0.2, 0.3], np.float32)}), {"x": x})


def test_integers_read_as_such_need_a_known_scale(make_model, tmp_path, random):
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
             helper.make_node("Cast", ["q"], ["y"], to=FLOAT)]  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(make_model(nodes, {"x": random(3)}), path)
    with pytest.raises(UnsupportedOpError, match="whose scale is computed at run time"):
        import_onnx(path)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_damaged_scales_are_refused(make_model, tmp_path, random, scale):
    node = helper.make_node("QuantizeLinear", ["x", "a_s", "a_z"], ["y"], name="quantize")
    path = tmp_path / "m.onnx"
    onnx.save(make_model([node], {"x": random(3)}, _grid("a", scale, 0), {"y": UINT8}), path)
    with pytest.raises(SourceError, match="scale and zero point do not fit"):
        import_onnx(path)


def test_a_weight_shared_by_name_keeps_the_layer_name(make_model, tmp_path, random):
    weight = numpy_helper.to_array(numpy_helper.from_array(np.ones((4, 3), np.int8)))
    nodes = [helper.make_node("DequantizeLinear", ["body.fc.weight_quantized", "a_s", "a_z"], ["w"]),
             helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]  # fmt: skip
    path = tmp_path / "m.onnx"
    constants = {"body.fc.weight_quantized": weight, **_grid("a", 0.5, 0, np.int8)}
    onnx.save(make_model(nodes, {"x": random(2, 3)}, constants), path)
    layers = {n: m for n, m in import_onnx(path).module.named_modules() if isinstance(m, nn.Linear)}
    assert list(layers) == ["body.fc"]
    assert layers["body.fc"].weight.unique().tolist() == [0.5]
