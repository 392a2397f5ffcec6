from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.correct_bias import correct_bias
from edgeopt.stages.layers import layers_of
from edgeopt.stages.round_weights import Grid, round_nearest
from edgeopt.stages.walk import walk

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
SPECS = (TensorSpec("x", (1, 4, 8, 8)),)


def batches():
    for seed in range(16):
        yield {"x": (0.5 + np.random.default_rng(seed).standard_normal((1, 4, 8, 8))).astype(np.float32)}


def means(graph):
    with torch.no_grad():
        return torch.cat([graph(torch.from_numpy(b["x"])) for b in batches()]).mean([0, 2, 3])


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, lambda: nn.ReLU(inplace=True)])
@pytest.mark.parametrize("bias", [True, False])
def test_brings_the_mean_behind_the_activation_back(activation, bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=bias), activation())
    graph = copy.deepcopy(torch.export.export(net.eval(), (torch.randn(1, 4, 8, 8),)).module())
    wanted = means(graph)
    corrected = copy.deepcopy(graph)
    for layer in layers_of(graph):
        round_nearest(layer, Grid(3))
    for arrival in walk(corrected, batches, SPECS):
        round_nearest(arrival.layer, Grid(3))
        correct_bias(arrival)
    before, after = (means(graph) - wanted).abs().max(), (means(corrected) - wanted).abs().max()
    assert before > 5e-3
    assert after < before / 20


def test_a_layer_rounded_alone_in_float_keeps_its_bias():
    graph = copy.deepcopy(torch.export.export(nn.Conv2d(4, 8, 3).eval(), (torch.randn(1, 4, 8, 8),)).module())
    bias = layers_of(graph)[0].bias.clone()
    for arrival in walk(graph, batches, SPECS):
        correct_bias(arrival)
    assert torch.allclose(layers_of(graph)[0].bias, bias, atol=1e-6)


def test_a_few_tokens_of_large_error_do_not_move_the_others():
    shape = (1, 40, 8)
    graph = copy.deepcopy(torch.export.export(nn.Linear(8, 4).eval(), (torch.zeros(shape),)).module())
    data = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(4)]
    for values in data:
        values[0, :, 0] = 0
        values[0, ::10, 0] = 50
    layer = layers_of(graph)[0]
    bias = layer.bias.clone()
    for arrival in walk(graph, lambda: iter([{"x": values} for values in data]), (TensorSpec("x", shape),)):
        error = torch.zeros(4, 8)
        error[:, 0] = 1.0  # felt by every tenth token alone
        layer.set_weight(layer.weight + error)
        layer.set_bias(layer.bias + 0.3)  # felt by all
        correct_bias(arrival)
    assert torch.allclose(layer.bias, bias, atol=1e-4)
