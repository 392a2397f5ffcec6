"""Still channels that take over part of another, `edgeopt.stages.split_channels`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.stages.condition import condition
from edgeopt.stages.layers import layers_of
from edgeopt.stages.quantize import quantize
from edgeopt.stages.split_channels import _copies, chains_of, split_channels

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
SHAPE = (1, 3, 16, 16)
SPECS = (TensorSpec("x", SHAPE, "float32", "NCHW"),)
WORST, STILL = 1, (4, 6)


class Net(nn.Module):
    """Channel 1 is read by far the largest weights and stays between 1 and 5; channels 4 and 6 stand still."""

    def __init__(self, clamp: type[nn.Module] = nn.ReLU6, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 5, 1, bias=bias)
        self.clamp = clamp()
        with torch.no_grad():
            self.first.weight *= 0.5
            self.first.bias[:] = 0.5
            self.depthwise.bias[:] = 0.5
            self.first.bias[WORST] = 3
            self.depthwise.weight[WORST] *= 8
            self.depthwise.weight[WORST] -= self.depthwise.weight[WORST].mean()
            for channel in STILL:
                self.first.weight[channel] *= 1e-7
                self.depthwise.weight[channel] *= 1e-7
                self.depthwise.bias[channel] = 0.7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.clamp(self.depthwise(self.clamp(self.first(x)))))


def batches():
    for seed in range(6):
        yield {"x": np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)}


def graph_of(net: nn.Module):
    return copy.deepcopy(torch.export.export(net.eval(), (torch.zeros(SHAPE),)).module())


def run(module, data):
    with torch.no_grad():
        return torch.cat([module(torch.from_numpy(d["x"])) for d in data])


def decibel(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


@pytest.mark.parametrize("clamp", [nn.ReLU6, nn.ReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_the_worst_channel_is_copied_and_the_function_kept(clamp, bias):
    module = graph_of(Net(clamp, bias))
    before = run(module, batches())
    first, depthwise, last = layers_of(module)
    weights = [layer.weight.clone() for layer in (first, depthwise, last)]
    assert split_channels(module, batches, SPECS) == 2
    for copied in STILL:
        assert torch.equal(first.weight[copied], weights[0][WORST])
        assert torch.equal(depthwise.weight[copied], weights[1][WORST])
        assert 0 < first.bias[copied] - first.bias[WORST] < 7 / 255
    for channel in (WORST, *STILL):
        torch.testing.assert_close(last.weight[:, channel], weights[2][:, WORST] / 3)
    after = run(module, batches())
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # borders see zeros that are not shifted
    torch.testing.assert_close(after[inside], before[inside], rtol=1e-4, atol=1e-4)
    assert decibel(before, after) > 35


def test_rounding_costs_less():
    program = torch.export.export(Net().eval(), (torch.zeros(SHAPE),))
    unseen = [{"x": np.random.default_rng(s).uniform(-1, 1, SHAPE).astype(np.float32)} for s in range(50, 60)]
    wanted = run(program.module(), unseen)
    scheme = scheme_of("static_wi8_ai8")
    found = []
    for equalize in (False, True):
        options = QuantizationOptions(equalize=equalize)
        conditioned = condition(program, batches, SPECS, scheme, options)
        quantized = quantize(conditioned, batches, SPECS, scheme, options).program
        found.append(decibel(wanted, run(quantized.module(), unseen)))
    assert found[1] > found[0] + 0.5


def unsplit(net: nn.Module) -> bool:
    module = graph_of(net)
    before = [layer.weight.clone() for layer in layers_of(module)]
    count = split_channels(module, batches, SPECS)
    same = all(torch.equal(a, layer.weight) for a, layer in zip(before, layers_of(module), strict=True))
    return count == 0 and same


def test_no_still_channel_no_split():
    net = Net()
    with torch.no_grad():
        for channel in STILL:
            net.first.weight[channel] *= 1e7
            net.depthwise.weight[channel] *= 1e7
    assert unsplit(net)


def test_samples_that_say_nothing_split_nothing():
    net = Net()
    with torch.no_grad():
        for layer in (net.first, net.depthwise):
            layer.bias.zero_()
    module = graph_of(net)
    zeros = [{"x": np.zeros(SHAPE, np.float32)}] * 3
    assert split_channels(module, lambda: iter(zeros), SPECS) == 0


def test_channels_that_reach_their_clamp_are_not_split():
    net = Net()
    with torch.no_grad():
        net.first.bias[:] = 0
        net.first.bias[WORST] = 5.8
    assert unsplit(net)


def test_copies_go_where_they_save_most():
    damage = torch.tensor([9.0, 1.0, 4.0, 0.0])
    # 9 -> 9/4 saves 6.75; 4 -> 1 saves 3; then 9/4 -> 1 saves 1.25, 1 -> 1/4 saves 0.75.
    assert _copies(damage, [10, 11, 12, 13], damage.sum()) == {0: [10, 12], 2: [11], 1: [13]}
    assert _copies(damage, [10, 11, 12], 1000 * damage.sum()) == {}


class ReadTwice(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        entered = self.clamp(self.first(x))
        return self.last(self.clamp(self.depthwise(entered)) + entered)


class Shared(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.last(self.clamp(self.depthwise(self.clamp(self.first(x)))))
        return whole + self.last(self.clamp(self.first(x)))


@pytest.mark.parametrize("net", [ReadTwice, Shared])
def test_a_chain_that_something_else_reads_is_left_alone(net):
    assert not list(chains_of(graph_of(net())))
    assert unsplit(net())
