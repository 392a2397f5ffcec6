from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.equalize import equalize

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
SPECS = (TensorSpec("x", (1, 4, 12, 12)),)
ACTIVATIONS = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


class Chain(nn.Module):
    """Layers of the kinds named, each followed by its activation; `+` adds the chain's start where shapes allow."""

    def __init__(self, parts, residual):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.parts = nn.ModuleList(part(*p) for p in parts)
        self.head = nn.Conv2d(8, 5, 1)
        self.residual = residual

    def forward(self, x):
        x = self.stem(x)
        y = x
        for part in self.parts:
            y = part(y)
        return self.head(x + y if self.residual else y).mean([2, 3])


def part(kind, activation):
    layer = {
        "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
        "grouped": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        "depthwise": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3, groups=8)),
        "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2),
        "pool": lambda: nn.MaxPool2d(3, 1, 1),
    }[kind]()
    return nn.Sequential(layer, ACTIVATIONS[activation]() if activation else nn.Identity())


def uneven(module):
    """Make the channels of every layer's output differ much in size."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            factor = 10 ** torch.empty(layer.out_channels).uniform_(-1.5, 1)
            layer.weight.data *= factor[:, None, None, None]
            if layer.bias is not None:
                layer.bias.data *= factor
    return module


def batches():
    for seed in range(4):
        yield {"x": np.random.default_rng(seed).standard_normal((1, 4, 12, 12)).astype(np.float32)}


def equalized(module):
    graph = copy.deepcopy(torch.export.export(module.eval(), (torch.randn(1, 4, 12, 12),)).module())
    before = copy.deepcopy(graph)
    return before, graph, equalize(graph, batches, SPECS)


def snr_db(before, after):
    x = torch.randn(1, 4, 12, 12)
    with torch.no_grad():
        a, b = before(x), after(x)
    return float(10 * torch.log10(a.pow(2).sum() / (a - b).pow(2).sum().clamp(min=1e-30)))


def spread(graph, node_name):
    """Return largest over smallest channel magnitude of a node over the samples; channels never alive do not count."""
    seen = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name == node_name:
                seen.append(value.abs().transpose(0, 1).flatten(1).amax(1))
            return value

    with torch.no_grad():
        for batch in batches():
            Watch(graph).run(torch.from_numpy(batch["x"]))
    largest = torch.stack(seen).amax(0)
    return float(largest.max() / largest[largest > 0].min())


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["conv", "grouped", "depthwise", "transposed", "pool"]),
            st.sampled_from([None, *ACTIVATIONS]),
        ),
        min_size=1,
        max_size=4,
    ),
    residual=st.booleans(),
)
def test_keeps_the_function(parts, residual):
    torch.manual_seed(0)
    before, after, _ = equalized(uneven(Chain(parts, residual)))
    assert snr_db(before, after) > 100


def test_makes_channels_alike_through_a_residual_stream():
    torch.manual_seed(0)
    before, after, count = equalized(uneven(Chain([("conv", "relu6"), ("depthwise", None)], True)))
    assert count == 1
    assert spread(before, "add") > 10
    assert spread(after, "add") < spread(before, "add") / 3


def test_makes_channels_alike_behind_relu_and_depthwise_layers():
    torch.manual_seed(0)
    before, after, count = equalized(uneven(Chain([("depthwise", "relu"), ("conv", "relu")], False)))
    assert count == 3
    assert spread(before, "relu") > 10
    assert spread(after, "relu") < 2.5


@pytest.mark.parametrize(("outlier", "expected"), [(1.0, 1.0), (1.8, 1.16), (100.0, 50.0)])
def test_one_sample_decides_little_about_a_channel_unless_it_exceeds_all_others_twice(outlier, expected):
    def samples():
        for seed in range(20):
            x = np.random.default_rng(seed).choice(np.float32([-1, 1]), (1, 4, 12, 12))
            x[:, 0] *= outlier if seed == 7 else 1
            yield {"x": x}

    first, last = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    first.weight.data = torch.eye(4)[:, :, None, None]
    graph = copy.deepcopy(torch.export.export(nn.Sequential(first, last), (torch.randn(1, 4, 12, 12),)).module())
    equalize(graph, samples, SPECS)
    factors = torch.diagonal(graph.get_parameter("0.weight").detach()[:, :, 0, 0])
    assert float(factors[1] / factors[0]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("activation", ["relu6", "hardswish"])
def test_leaves_alone_what_is_not_scale_equivariant(activation):
    torch.manual_seed(0)
    before, after, count = equalized(nn.Sequential(nn.Conv2d(4, 8, 3), ACTIVATIONS[activation](), nn.Conv2d(8, 4, 3)))
    assert count == 0
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items())
