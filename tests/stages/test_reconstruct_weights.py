from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import layers_of
from edgeopt.stages.reconstruct_weights import reconstruct_weights
from edgeopt.stages.round_weights import Grid, round_nearest
from edgeopt.stages.unfold import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied
SPECS = (TensorSpec("x", (1, 4, 8, 8)),)
GRID = Grid(4)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.deep, self.head = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ConvTranspose2d(4, 5, 2, stride=2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + self.third(torch.relu(self.second(x)))
        return self.head(torch.relu(self.deep(x)))


def graph():
    torch.manual_seed(0)
    return copy.deepcopy(torch.export.export(Residual().eval(), (torch.randn(1, 4, 8, 8),)).module())


def batches(first=0):
    for seed in range(first, first + 24):
        noise = np.random.default_rng(seed).standard_normal((1, 4, 8, 8))
        yield {"x": (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)).astype(np.float32)}


def error(reference, module):
    with torch.no_grad():
        return sum(
            float((reference(x) - module(x)).pow(2).sum()) for b in batches(500) for x in [torch.from_numpy(b["x"])]
        )


def test_beats_the_nearest_integers_on_the_same_grid():
    reference, nearest, learned = graph(), graph(), graph()
    for layer in layers_of(nearest):
        round_nearest(layer, GRID)
    reconstruct_weights(learned, batches, SPECS, lambda _: GRID)
    for layer in layers_of(learned):
        rows = rows_of(layer)
        scale = rows.abs().amax(-1, keepdim=True) / GRID.largest
        assert torch.equal(torch.round(rows / scale) * scale, rows), layer.name
    assert error(reference, learned) < 0.9 * error(reference, nearest)


def test_takes_at_most_one_step_from_the_float_weights_and_repeats_itself():
    first, second = graph(), graph()
    reconstruct_weights(first, batches, SPECS, lambda _: GRID, steps=40)
    reconstruct_weights(second, batches, SPECS, lambda _: GRID, steps=40)
    for a, b, original in zip(layers_of(first), layers_of(second), layers_of(graph()), strict=True):
        assert torch.equal(a.weight, b.weight)
        scale = rows_of(a).abs().amax(-1, keepdim=True) / GRID.largest
        assert ((rows_of(a) - rows_of(original)).abs() <= scale * 1.001).all()


def test_a_layer_without_a_grid_stays():
    module, original = graph(), graph()
    reconstruct_weights(
        module, batches, SPECS, lambda layer: None if layer.name == "second" else GRID, steps=5, max_samples=4
    )
    same = [torch.equal(a.weight, b.weight) for a, b in zip(layers_of(module), layers_of(original), strict=True)]
    assert same == [False, True, False, False, False]
