from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of

pytest.importorskip("neural_compressor", reason="the extra `inc` is not installed")
pytest.importorskip("accelerate", reason="neural-compressor's GPTQ needs accelerate, which the extra `inc` installs")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # neural-compressor's own, while it is imported
    from edgeopt.stages.layers import Layer, layers_of
    from edgeopt.stages.neural_compressor import condition_with_neural_compressor, quantize_with_neural_compressor
    from edgeopt.stages.round_weights import grid_of
    from edgeopt.stages.unfold import rows_of

# torch's own, whenever a program's module is copied
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
INPUTS = (TensorSpec("x", (1, 3, 16, 16)),)


class SmallNet(torch.nn.Module):
    """Convolutions of every kind, an activation module that is used three times, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(16)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.pointwise = torch.nn.Conv2d(16, 32, 1)
        self.hidden = torch.nn.Linear(32, 64)
        self.head = torch.nn.Linear(64, 10)
        self.act = torch.nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        x = self.act(self.pointwise(x + self.act(self.depthwise(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    net = SmallNet().eval()
    with torch.no_grad():
        net.norm.running_var.uniform_(0.5, 2.0)
        return torch.export.export(net, (torch.zeros(INPUTS[0].shape),))


def batches(count: int = 8) -> Iterator[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    # A few strong directions, so that inputs are correlated and compensating errors pays.
    basis = generator.standard_normal((6, 3 * 16 * 16)).astype(np.float32)
    for _ in range(count):
        value = generator.standard_normal(6).astype(np.float32) @ basis
        yield {"x": value.reshape(INPUTS[0].shape)}


def snr_db(program: torch.export.ExportedProgram, other: torch.export.ExportedProgram) -> float:
    signal = noise = 0.0
    for batch in batches():
        x = torch.from_numpy(batch["x"])
        with torch.no_grad():
            a, b = program.module()(x), other.module()(x)
        signal += float(a.square().sum())
        noise += float((a - b).square().sum())
    return 10 * float(np.log10(signal / noise))


def assert_on_grid(layer: Layer, precision: str, options: QuantizationOptions) -> None:
    grid = grid_of(layer, scheme_of(precision), options)
    rows = rows_of(layer)
    blocks = rows if grid.block is None else rows.unflatten(-1, (-1, grid.block))
    scale = blocks.abs().amax(-1, keepdim=True) / grid.largest
    integers = torch.round(blocks / scale)
    assert torch.equal(integers * scale, blocks), layer.name
    assert int(integers.abs().max()) == grid.largest


@pytest.mark.parametrize("precision", ["weight_only_wi4_afp32", "static_wi8_ai8"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_weights_are_on_the_grid_that_their_largest_value_tells(
    program: torch.export.ExportedProgram, precision: str, rounding: str
) -> None:
    options = QuantizationOptions(rounding=rounding)
    conditioned = condition_with_neural_compressor(program, batches, INPUTS, scheme_of(precision), options)
    layers = layers_of(conditioned.module())
    assert len(layers) == 5
    for layer in layers:
        assert_on_grid(layer, precision, options)


def test_gptq_comes_nearer_than_nearest_in_four_bits(program: torch.export.ExportedProgram) -> None:
    scheme = scheme_of("weight_only_wi4_afp32")
    found = {
        rounding: snr_db(
            program,
            condition_with_neural_compressor(program, batches, INPUTS, scheme, QuantizationOptions(rounding=rounding)),
        )
        for rounding in ("nearest", "gptq")
    }
    assert found["gptq"] > found["nearest"] + 3
    assert found["nearest"] > 10


def test_layers_kept_in_float_keep_their_weights(program: torch.export.ExportedProgram) -> None:
    options = QuantizationOptions(rounding="nearest", keep_float=("head",))
    conditioned = condition_with_neural_compressor(
        program, batches, INPUTS, scheme_of("weight_only_wi4_afp32"), options
    )
    weights = {layer.name: layer.weight for layer in layers_of(conditioned.module())}
    assert torch.equal(weights["head"], program.state_dict["head.weight"])
    assert not torch.equal(weights["hidden"], program.state_dict["hidden.weight"])


def test_static_graph_has_the_conditioned_weights_in_int8(program: torch.export.ExportedProgram) -> None:
    scheme, options = scheme_of("static_wi8_ai8"), QuantizationOptions(rounding="nearest")
    conditioned = condition_with_neural_compressor(program, batches, INPUTS, scheme, options)
    quantized = quantize_with_neural_compressor(conditioned, batches, INPUTS, scheme, options)
    targets = [str(node.target) for node in quantized.program.graph.nodes]
    assert sum("dequantize_per_channel" in target for target in targets) == 5
    assert snr_db(program, quantized.program) > 25
    stored = {
        tuple(t.shape): t
        for t in (*quantized.program.state_dict.values(), *quantized.program.constants.values())
        if isinstance(t, torch.Tensor) and t.dtype == torch.int8 and t.ndim > 1
    }
    for layer in layers_of(conditioned.module()):
        scale = rows_of(layer).abs().amax(-1).flatten() / 127
        exact = torch.round(layer.weight / scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        assert torch.equal(stored[tuple(layer.weight.shape)].float(), exact), layer.name
    known = {node.name for node in conditioned.module().graph.nodes}
    assert quantized.ranges
    assert set(quantized.ranges) <= known
    assert all(low <= 0 <= high for low, high in quantized.ranges.values())


def test_static_graph_leaves_kept_layers_in_float(program: torch.export.ExportedProgram) -> None:
    scheme = scheme_of("static_wi8_ai8")
    options = QuantizationOptions(rounding="nearest", estimator="minmax", keep_float=("head", "first"))
    conditioned = condition_with_neural_compressor(program, batches, INPUTS, scheme, options)
    quantized = quantize_with_neural_compressor(conditioned, batches, INPUTS, scheme, options)
    targets = [str(node.target) for node in quantized.program.graph.nodes]
    assert sum("dequantize_per_channel" in target for target in targets) == 3


@pytest.mark.parametrize(
    ("precision", "options", "said"),
    [
        ("palettized_w4", QuantizationOptions(), "integers only"),
        ("weight_only_wi8_afp32", QuantizationOptions(rounding="adaround"), "no AdaRound"),
    ],
)
def test_what_it_cannot_do_is_said(
    program: torch.export.ExportedProgram, precision: str, options: QuantizationOptions, said: str
) -> None:
    with pytest.raises(ConversionError, match=said):
        condition_with_neural_compressor(program, batches, INPUTS, scheme_of(precision), options)


def test_sixteen_bit_activations_are_refused(program: torch.export.ExportedProgram) -> None:
    with pytest.raises(ConversionError, match="8-bit activations only"):
        quantize_with_neural_compressor(program, batches, INPUTS, scheme_of("static_wi8_ai16"), QuantizationOptions())


def test_static_needs_a_sample(program: torch.export.ExportedProgram) -> None:
    with pytest.raises(ConversionError, match="holds none"):
        quantize_with_neural_compressor(
            program, lambda: iter(()), INPUTS, scheme_of("static_wi8_ai8"), QuantizationOptions()
        )
