"""Channels that no input moves, found by what they give over the samples."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import layers_of
from edgeopt.stages.still_channels import silence_still_channels
from edgeopt.stages.walk import walk

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
SPECS = (TensorSpec("x", (1, 4, 8, 8)),)


def batches():
    for seed in range(8):
        yield {"x": np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32)}


def silenced(net):
    graph = copy.deepcopy(torch.export.export(net.eval(), (torch.randn(1, 4, 8, 8),)).module())
    found = [silence_still_channels(arrival) for arrival in walk(graph, batches, SPECS)]
    return graph, layers_of(graph), found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["dense", "depthwise", "transposed"])
def test_a_channel_of_next_to_no_weight_becomes_a_constant(kind, bias):
    torch.manual_seed(0)
    layer = {
        "dense": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=bias),
        "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=bias),
        "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, bias=bias),
    }[kind]()
    axis = 1 if kind == "transposed" else 0
    with torch.no_grad():
        layer.weight.select(axis, 2).mul_(1e-7)
    x = next(batches())["x"]
    wanted = layer(torch.from_numpy(x)).detach()
    graph, (changed,), found = silenced(nn.Sequential(layer, nn.ReLU6()))
    assert found == [1]
    norms = changed.weight.abs().transpose(0, axis).flatten(1).amax(1)
    assert norms[2] == 0 and (norms[[0, 1, 3]] > 0).all()
    with torch.no_grad():
        got = graph(torch.from_numpy(x))
    assert torch.allclose(got, wanted.clamp(0, 6), atol=1e-5)


def test_a_channel_that_varies_stays_however_small_its_weights():
    torch.manual_seed(0)
    net = nn.Conv2d(4, 6, 1)
    with torch.no_grad():
        net.weight[2] *= 1e-2  # of the others' size, and two steps of the output
    _, (layer,), found = silenced(net)
    assert found == [0] and layer.weight[2].abs().max() > 0


def test_a_linear_layer_is_left_alone():
    torch.manual_seed(0)
    net = nn.Linear(8, 6)
    with torch.no_grad():
        net.weight[2] *= 1e-7
    assert silenced(net)[2] == [0]
