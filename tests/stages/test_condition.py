from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.stages.condition import condition
from edgeopt.stages.layers import layers_of
from edgeopt.stages.quantize import quantize
from edgeopt.stages.round_weights import grid_of
from edgeopt.stages.unfold import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
torch.set_num_threads(1)
SPECS = (TensorSpec("image", (1, 3, 16, 16)),)


class Separable(nn.Module):
    """A residual block of depthwise-separable convolutions, whose channels differ much in size."""

    def __init__(self):
        super().__init__()
        self.stem = unit(3, 16, 3)
        self.narrow = unit(16, 8, 1, clamp=False)
        self.expand = unit(8, 32, 1)
        self.depthwise = unit(32, 32, 3, groups=32)
        self.project = unit(32, 8, 1, clamp=False)
        self.fc = nn.Linear(8 * 8 * 8, 64)

    def forward(self, x):
        x = self.narrow(self.stem(x))
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.fc(nn.functional.avg_pool2d(x, 2).flatten(1))


def unit(inputs, outputs, kernel, *, groups=1, clamp=True):
    norm = nn.BatchNorm2d(outputs)
    norm.weight.data = 10 ** torch.empty(outputs).uniform_(-0.3 if clamp else -2.5, 0.3)
    nn.init.normal_(norm.running_mean, std=0.3)
    nn.init.uniform_(norm.running_var, 0.2, 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm, *([nn.ReLU6()] if clamp else []))


def program():
    torch.manual_seed(0)
    return torch.export.export(Separable().eval(), (torch.randn(1, 3, 16, 16),))


def batches(count=24, first=0):
    for seed in range(first, first + count):
        noise = np.random.default_rng(seed).standard_normal((1, 3, 16, 16))
        smooth = noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)
        yield {"image": smooth.astype(np.float32)}


def snr_db(reference, candidate):
    with torch.no_grad():
        pairs = [tuple(m(torch.from_numpy(b["image"])) for m in (reference, candidate)) for b in batches(50, 1000)]
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float(10 * torch.log10(a.pow(2).sum() / (a - b).pow(2).sum()))


def on_grid(layer, grid):
    rows = rows_of(layer)
    blocks = rows.unflatten(2, (-1, grid.block or rows.shape[2]))
    scale = blocks.abs().amax(-1, keepdim=True) / grid.largest
    integers = torch.round(blocks / scale)
    return bool((integers * scale == blocks).all())


@pytest.mark.parametrize("precision", ["static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi4_afp32"])
@pytest.mark.parametrize("rounding", ["gptq", "nearest", "adaround"])
def test_leaves_every_weight_on_the_grid(precision, rounding):
    options = QuantizationOptions(rounding=rounding)
    scheme = scheme_of(precision)
    conditioned = condition(program(), batches, SPECS, scheme, options).module()
    layers = layers_of(conditioned)
    assert len(layers) == 6
    for layer in layers:
        assert on_grid(layer, grid_of(layer, scheme, options)), layer.name
    assert not any("batch_norm" in str(n.target) for n in conditioned.graph.nodes)


@pytest.mark.parametrize("samples", [24, 100])
def test_eight_bit_weights_are_nearer_than_with_plain_rounding(samples):
    """The linear layer has 512 inputs, far more than samples, and must not fit the samples alone."""
    scheme, reference = scheme_of("weight_only_wi8_afp32"), program().module()
    found = {}
    for rounding in ("nearest", "gptq"):
        options = QuantizationOptions(rounding=rounding, correct_bias=False)
        conditioned = condition(program(), lambda: batches(samples), SPECS, scheme, options)
        found[rounding] = snr_db(reference, conditioned.module())
    assert found["gptq"] > found["nearest"] + 2, found


def test_the_quantized_graph_loses_what_activations_cost_and_no_more():
    scheme, reference = scheme_of("static_wi8_ai8"), program().module()
    conditioned = condition(program(), batches, SPECS, scheme, QuantizationOptions())
    whole = snr_db(reference, quantize(conditioned, batches, SPECS, scheme, QuantizationOptions()).program.module())
    weights = snr_db(reference, conditioned.module())
    assert weights > whole + 6 and whole > 33, (weights, whole)


def test_four_bits_are_nearer_than_with_plain_rounding():
    scheme, reference = scheme_of("weight_only_wi4_afp32"), program().module()
    found = {}
    for rounding in ("nearest", "gptq", "adaround"):
        options = QuantizationOptions(rounding=rounding, correct_bias=False)
        conditioned = condition(program(), lambda: batches(100), SPECS, scheme, options)
        found[rounding] = snr_db(reference, conditioned.module())
    assert found["gptq"] > found["nearest"] + 3, found
    assert found["adaround"] > found["nearest"] + 1, found


def test_layers_kept_in_float_keep_their_weights():
    before = {layer.name: layer.weight.clone() for layer in layers_of(program().module())}
    options = QuantizationOptions(keep_float=("fc",), equalize=False, smooth=None)
    conditioned = condition(program(), batches, SPECS, scheme_of("dynamic_wi8_afp32"), options)
    after = {layer.name: layer.weight for layer in layers_of(conditioned.module())}
    assert torch.equal(after["fc"], before["fc"])
    assert not torch.equal(after["stem.0"], before["stem.0"])


def test_gives_the_same_weights_each_time_and_leaves_the_program_alone():
    given = program()
    before = {k: v.clone() for k, v in given.state_dict.items()}
    first, second = (
        condition(given, batches, SPECS, scheme_of("static_wi8_ai8"), QuantizationOptions()) for _ in range(2)
    )
    for name, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[name]), name
    assert all(torch.equal(given.state_dict[k], v) for k, v in before.items())


class Norms(nn.Module):
    """A linear layer behind a LayerNorm some of whose channels are far larger than the others."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.norm.weight.data[::8] = 40.0
        self.fc = nn.Linear(32, 16)

    def forward(self, x):
        return self.fc(self.norm(x))


@pytest.mark.parametrize(("precision", "least"), [("dynamic_wi8_afp32", 0.999), ("weight_only_wi4_afp32", 0.98)])
def test_activations_that_a_runtime_may_quantize_are_smoothed_before(precision, least):
    torch.manual_seed(0)
    module = Norms().eval()
    specs = (TensorSpec("x", (1, 6, 32)),)

    def samples():
        for seed in range(8):
            yield {"x": np.random.default_rng(seed).standard_normal((1, 6, 32)).astype(np.float32)}

    original = torch.export.export(module, (torch.randn(1, 6, 32),))
    x = torch.from_numpy(next(samples())["x"])
    spread = []
    for smooth in (None, 0.5):
        options = QuantizationOptions(smooth=smooth, rounding="nearest", correct_bias=False)
        made = condition(original, samples, specs, scheme_of(precision), options).module()
        state = made.state_dict()
        normed = nn.functional.layer_norm(x, (32,), state["norm.weight"], state["norm.bias"])
        spread.append(float(normed.abs().amax((0, 1)).max() / normed.abs().amax((0, 1)).median()))
        assert torch.nn.functional.cosine_similarity(made(x).flatten(), module(x).flatten(), 0) > least
    assert spread[1] < spread[0] / 3
