"""Scales moved between activations and weights leave the function alone and even out what is quantized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.channel_extremes import largest_of_channels
from edgeopt.stages.layers import layers_of
from edgeopt.stages.level_outputs import level_outputs
from edgeopt.stages.smooth import groups_of, scales, smooth

torch.set_num_threads(1)
SPECS = (TensorSpec("x", (1, 6, 16)),)


def snr(reference, actual):
    reference, actual = reference.double(), actual.double()
    return 10 * torch.log10(reference.square().sum() / (reference - actual).square().sum().clamp(min=1e-300)).item()


class Attention(nn.Module):
    """Multi-head attention as transformers spells it; `fused` uses one call for softmax and both products."""

    def __init__(self, *, fused, joint):
        super().__init__()
        self.qkv = nn.Linear(16, 48) if joint else None
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.fused = fused

    def forward(self, x):
        if self.qkv is not None:
            q, k, v = self.qkv(x).reshape(1, 6, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (m(x).view(1, 6, 4, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        return self.out(y.transpose(1, 2).contiguous().reshape(1, 6, 16))


class Encoder(nn.Module):
    def __init__(self, *, post_norm=False, fused=False, joint=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.LayerNorm(16)
        self.attention = Attention(fused=fused, joint=joint)
        self.second = nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)
        self.post_norm = post_norm
        with torch.no_grad():
            for norm in (self.first, self.second):
                norm.weight.copy_(torch.rand(16) + 0.5)
                norm.weight[3] *= 30
                norm.bias.copy_(torch.randn(16) * 0.1)
            self.down.weight[5] *= 40
            self.attention.out.weight[:, 2] *= 10

    def forward(self, x):
        if self.post_norm:
            x = self.first(x)
            x = self.second(x + self.attention(x))
            return self.head(nn.functional.layer_norm(x + self.down(nn.functional.gelu(self.up(x))), (16,)))
        x = x + self.attention(self.first(x))
        x = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return self.head(torch.softmax(x, -1))


def exported(module):
    return torch.export.export(module.eval(), (torch.randn(1, 6, 16),)).module()


def batches():
    generator = np.random.default_rng(0)
    return ({"x": generator.standard_normal((1, 6, 16)).astype(np.float32)} for _ in range(8))


NETS = [
    {"post_norm": post, "fused": fused, "joint": joint}
    for post in (False, True)
    for fused in (False, True)
    for joint in (False, True)
]


@pytest.fixture(params=NETS, ids=lambda n: "-".join(k for k, v in n.items() if v) or "plain")
def net(request):
    return Encoder(**request.param).eval()


def outputs(module):
    with torch.no_grad():
        return torch.cat([module(torch.from_numpy(b["x"])) for b in batches()])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_function_stays(net, alpha):
    module = exported(net)
    before = outputs(module)
    weights = {layer.name: layer.weight.clone() for layer in layers_of(module)}
    smooth(module, batches, SPECS, alpha)
    assert snr(before, outputs(module)) > 100
    assert any(not torch.equal(layer.weight, weights[layer.name]) for layer in layers_of(module))


def test_what_linear_layers_read_becomes_even(net):
    module = exported(net)

    def unevenness():
        groups = groups_of(module)
        largest = largest_of_channels(module, [g.source for g in groups], batches, SPECS)
        return {g.layers[0].name: float(largest[g.source].max() / largest[g.source].median()) for g in groups}

    before = unevenness()
    smooth(module, batches, SPECS, 1.0)
    after = unevenness()
    for name in (n for n in before if n not in ("head",)):
        assert after[name] == pytest.approx(1, abs=1e-3), name
        assert before[name] > 1.1, name


def test_readers_of_one_tensor_share_its_scale():
    module = exported(Encoder())
    weights = {layer.name: layer.weight.clone() for layer in layers_of(module)}
    smooth(module, batches, SPECS, 0.5)
    moved = {la.name: (la.weight / weights[la.name])[0] for la in layers_of(module)}
    assert torch.allclose(moved["attention.q"], moved["attention.k"], rtol=1e-4)
    assert moved["attention.q"].std() > 0.1


def test_nothing_is_inserted_where_the_norm_can_take_the_scale():
    module = exported(Encoder())
    smooth(module, batches, SPECS, 0.5)
    products = [n for n in module.graph.nodes if n.op == "call_function" and n.target is torch.ops.aten.mul.Tensor]
    assert [n.args[0].target for n in products] == [torch.ops.aten.gelu.default]


def test_weights_that_something_else_reads_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.table = nn.LayerNorm(16), nn.Embedding(9, 16)
            with torch.no_grad():
                self.norm.weight.mul_(torch.linspace(1, 30, 16))

        def forward(self, x):
            x = self.norm(x + self.table(torch.arange(6)))
            return nn.functional.linear(x, self.table.weight)

    module = exported(Tied())
    before = outputs(module)
    smooth(module, batches, SPECS, 0.5)
    assert torch.equal(before, outputs(module))


def test_a_float_reader_of_the_values_is_not_cheated():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            v = self.v(x)
            return self.out(torch.softmax(x @ x.transpose(1, 2), -1) @ v) + v.tanh()

    module = exported(Two())
    before = outputs(module)
    smooth(module, batches, SPECS, 0.5)
    assert snr(before, outputs(module)) > 100


def test_scales_of_dead_channels_are_one():
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 8.0]])
    s = scales(torch.tensor([0.0, 3.0, 32.0]), [weight], 0.5)
    assert s.tolist() == [1, 1, 1]
    s = scales(torch.tensor([4.0, 3.0, 32.0]), [weight], 0.5)
    assert s[2] / s[0] == pytest.approx((32 / 8) ** 0.5 / 4**0.5)
    assert s[1] == 1


def test_levelling_keeps_the_function_and_evens_the_output(net):
    module = exported(net)
    before = outputs(module)
    (down,) = (layer for layer in layers_of(module) if layer.name == "down")

    def unevenness():
        sizes = largest_of_channels(module, [down.node], batches, SPECS)[down.node]
        return float(sizes.max() / sizes.min())

    assert unevenness() > 10
    level_outputs(module, batches, SPECS)
    assert unevenness() == pytest.approx(1, abs=1e-3)
    assert snr(before, outputs(module)) > 100


def test_even_outputs_are_not_levelled():
    module = exported(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)))
    count = len(module.graph.nodes)
    level_outputs(module, batches, SPECS)
    assert len(module.graph.nodes) == count
