"""Where the int8 graph is quantized, and that what PyTorch simulates is near the float model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec

torch.set_num_threads(1)
Q = "quantize_per_tensor"
DQ = "dequantize_per_tensor"


@pytest.fixture(scope="module")
def quantize():
    """Quantize a module calibrated on noise; importing torchao warns about its surroundings."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgeopt.stages.quantize import quantize as stage

    def run(module, *shape, batches=8):
        specs = (TensorSpec("x", shape),)
        generator = np.random.default_rng(0)
        data = [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(batches)]
        program = torch.export.export(module.eval(), (torch.rand(shape),))
        return stage(program, iter(data), specs), torch.from_numpy(data[0]["x"])

    return run


def kind(node):
    return str(node.target).split(".")[-2] if node.op == "call_function" else node.op


def feeding(program, name):
    """Return, for every call of an operator, the kinds of what it reads."""
    return [[kind(a) for a in n.args if isinstance(a, torch.fx.Node)] for n in program.graph.nodes if kind(n) == name]


def snr(reference, actual):
    return 10 * torch.log10(reference.square().sum() / (reference - actual).square().sum()).item()


class Block(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 1)
        self.act = act or nn.ReLU6()

    def forward(self, x):
        return self.second(self.act(self.conv(x)))


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.ReLU(), nn.Hardtanh(-1, 1)], ids=lambda a: type(a).__name__)
def test_a_convolution_and_its_clamp_are_one_unit(quantize, act):
    program, x = quantize(Block(act), 1, 3, 8, 8)
    clamps = [n for n in program.graph.nodes if kind(n) in ("relu", "relu6", "hardtanh", "clamp")]
    assert clamps and all(kind(n.args[0]) == "conv2d" for n in clamps), "nothing is observed between them"
    assert all(kind(user) == Q for n in clamps for user in n.users)
    assert snr(Block(act).eval()(x), program.module()(x)) > 25


def test_weights_are_symmetric_per_channel_within_127(quantize):
    program, _ = quantize(Block(), 1, 3, 8, 8)
    weights = [
        (name, value)
        for name, value in {**program.state_dict, **program.constants}.items()
        if isinstance(value, torch.Tensor) and value.dtype == torch.int8
    ]
    assert len(weights) == 2
    for _, weight in weights:
        assert weight.min() >= -127
        assert torch.equal(weight.abs().amax((1, 2, 3)), torch.full((8,), 127, dtype=torch.int8))
    assert feeding(program, "conv2d")[0][1] == "dequantize_per_channel"


def test_inputs_and_outputs_stay_float(quantize):
    program, x = quantize(Block(), 2, 3, 8, 8)
    assert program.module()(x).dtype == torch.float32
    assert program.graph_signature.user_inputs == torch.export.export(Block(), (x,)).graph_signature.user_inputs


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.a(x) * 3, self.b(x)], 1)
        x = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 2)
        return self.head(x.mean((2, 3)).flatten(1))


def scales_around(program, name):
    found = []
    for node in program.graph.nodes:
        if kind(node) == name:
            before = [
                a for a in torch.fx.node.map_arg(node.args, lambda n: n) and node.all_input_nodes if kind(a) == DQ
            ]
            after = [u for u in node.users if kind(u) == Q]
            found.append(({n.args[1:3] for n in before}, {n.args[1:3] for n in after}))
    return found


@pytest.mark.parametrize("name", ["cat", "pad", "max_pool2d"])
def test_what_moves_values_keeps_their_scale(quantize, name):
    program, _ = quantize(Shared(), 1, 3, 8, 8)
    (around,) = scales_around(program, name)
    before, after = around
    assert len(before) == 1 and before == after


def test_residual_sums_are_quantized_on_both_sides(quantize):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.conv(x) + x)

    program, _ = quantize(Residual(), 1, 3, 8, 8)
    assert feeding(program, "add") == [[DQ, DQ]]


def test_softmax_and_normalisation_stay_in_float(quantize):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(torch.softmax(self.fc(x), -1))

    program, _ = quantize(Attention(), 1, 4, 8)
    for node in program.graph.nodes:
        if kind(node) in ("softmax", "layer_norm"):
            assert all(kind(user) != Q for user in node.users)
    assert feeding(program, "linear")[0][0] == DQ


def test_transposed_and_grouped_convolutions(quantize):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
            self.grouped = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
            self.dw = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, x):
            return self.dw(self.grouped(self.up(x)))

    program, x = quantize(Up(), 1, 4, 6, 6)
    torch.manual_seed(0)
    assert snr(Up().eval()(x), program.module()(x)) > 20
    assert feeding(program, "conv2d")[0][:2] == [DQ, "dequantize_per_channel"]


def test_a_model_with_nothing_to_quantize_is_told(quantize):
    class Plain(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1)

    with pytest.raises(ConversionError, match="the model has no layer that can be quantized"):
        quantize(Plain(), 1, 5)


def test_the_range_covers_what_was_seen_in_any_batch(quantize):
    """Calibration keeps no moving average: one loud batch among quiet ones counts."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return self.conv(x)

    program, _ = quantize(Scale(), 1, 1, 32, 32, batches=12)
    loud = torch.full((1, 1, 32, 32), 3.0)
    assert (program.module()(loud) - loud).abs().max() < 0.3
