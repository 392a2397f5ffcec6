from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.stages.correct_bias import correct_bias
from edgeopt.stages.layers import layers_of
from edgeopt.stages.round_weights import (
    Grid,
    Moments,
    grid_of,
    moments_of,
    recoverable_scale,
    round_nearest,
    round_rows,
    round_weights,
)
from edgeopt.stages.unfold import Columns, rows_of, weight_of_rows
from edgeopt.stages.walk import walk

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied


def graph_of(module, shape):
    return copy.deepcopy(torch.export.export(module.eval(), (torch.randn(shape),)).module())


def correlated(groups, size, columns=400):
    """Return inputs whose channels move together, `[groups, size, columns]`."""
    mixing = torch.randn(groups, size, max(1, size // 3))
    return mixing @ torch.randn(groups, mixing.shape[-1], columns) + 0.1 * torch.randn(groups, size, columns)


def moments_from(columns):
    moments = Moments.empty(*columns.shape[:2])
    moments.add(columns)
    return moments


def assert_on_grid(rows, grid):
    """Every weight is an integer times a scale that the weights themselves tell."""
    blocks = rows.reshape(*rows.shape[:2], -1, grid.block or rows.shape[2])
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest / grid.largest, torch.ones_like(largest))
    integers = torch.round(blocks / scale)
    assert torch.equal(integers * scale, blocks)
    assert ((integers.abs().amax(-1, keepdim=True) == grid.largest) == (largest > 0)).all()


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 5),
    outputs=st.integers(1, 6),
    inputs=st.sampled_from([1, 3, 9, 32, 64, 96, 130]),
    bits=st.sampled_from([4, 8]),
    blockwise=st.booleans(),
    magnitude=st.floats(-6, 3),
    seed=st.integers(0, 1000),
)
def test_rounds_onto_a_grid_that_the_weights_tell(groups, outputs, inputs, bits, blockwise, magnitude, seed):
    torch.manual_seed(seed)
    grid = Grid(bits, 32 if blockwise and inputs % 32 == 0 else None)
    rows = torch.randn(groups, outputs, inputs) * 10**magnitude
    rows[0, 0] = 0
    moments = moments_from(correlated(groups, inputs, 50))
    rounded = round_rows(rows, moments, grid)
    assert_on_grid(rounded, grid)
    assert torch.equal(rounded, round_rows(rows, moments, grid))


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-60, 2.0**60, width=32), st.sampled_from([7, 127]))
def test_the_scale_comes_back_bit_for_bit(largest, end):
    scale = recoverable_scale(torch.tensor([largest]), end)
    assert torch.equal((scale * end) / end, scale)
    gap = 2**-25 if largest / end > 2**-19 else 0
    assert float(scale) == pytest.approx(largest / end, rel=2**-11, abs=gap)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, 32)])
def test_the_output_error_is_below_that_of_the_nearest_integers(groups, grid):
    torch.manual_seed(0)
    columns = correlated(groups, 64)
    rows = torch.randn(groups, 16, 64)
    linear = graph_of(nn.Linear(64, 16 * groups), (1, 64))
    layer = layers_of(linear)[0]
    layer.set_weight(rows.reshape(-1, 64))
    round_nearest(layer, grid)
    nearest = layer.weight.reshape(rows.shape)
    learned = round_rows(rows, moments_from(columns), grid)
    error = [float(((r - rows) @ columns).pow(2).sum()) for r in (learned, nearest)]
    assert error[0] < 0.6 * error[1]


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, padding=1, stride=2), (1, 4, 9, 8)),
    "same": (nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (1, 4, 9, 8)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (1, 6, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=(1, 0)), (1, 4, 9, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=2, dilation=2), (1, 4, 12)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (1, 4, 5, 6)),
    "grouped transposed": (nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=(1, 2)), (1, 4, 5, 6)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=3), (1, 4, 7)),
    "linear": (nn.Linear(8, 6), (1, 5, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_rows_times_its_columns(name):
    module, shape = LAYERS[name]
    layer = layers_of(graph_of(module, shape))[0]
    x = torch.randn(shape)
    with torch.no_grad():
        expected = module(x) - module(torch.zeros(shape))
    axis = expected.ndim - 1 if name == "linear" else 1
    product = (rows_of(layer) @ Columns(layer, 10_000).of(x, 0)).flatten(0, 1)
    assert torch.allclose(product, expected.transpose(0, axis).flatten(1), atol=1e-5)
    assert torch.equal(weight_of_rows(layer, rows_of(layer)), layer.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_rounds_every_kind_of_layer(name):
    module, shape = LAYERS[name]
    graph = graph_of(module, shape)
    for arrival in walk(graph, lambda: batches(shape, 3), (TensorSpec("x", shape),)):
        round_weights(arrival, Grid(8))
    assert_on_grid(rows_of(layers_of(graph)[0]), Grid(8))


def batches(shape, count):
    for seed in range(count):
        yield {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


SHAPE = (1, 128, 12, 12)
NOISE = [np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) for seed in range(16)]


def arrival_before(activation, data):
    """Return a walk's only arrival: a depthwise convolution of 128 channels with positive weights."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(128, 128, 3, groups=128), activation)
    with torch.no_grad():
        module[0].weight.abs_()
        module[0].bias.fill_(1)
    inputs = (TensorSpec("x", SHAPE),)
    return next(iter(walk(graph_of(module, SHAPE), lambda: iter([{"x": x} for x in data]), inputs)))


def error_of(arrival, activation, **options):
    """Return the mean square error behind the activation, the bias corrected."""
    layer, inputs = arrival.layer, arrival.inputs
    weight, bias = layer.weight.clone(), layer.bias.clone()
    round_weights(arrival, Grid(4), **options)
    correct_bias(arrival)
    found = [activation(arrival.outputs(x)) - activation(arrival.float_outputs(x)) for x in inputs]
    layer.set_weight(weight)
    layer.set_bias(bias)
    return float(torch.cat(found).pow(2).mean())


def test_what_the_bias_takes_out_does_not_count():
    arrival = arrival_before(nn.Identity(), [n + 5 for n in NOISE])
    assert error_of(arrival, nn.Identity(), centred=True) < 0.9 * error_of(arrival, nn.Identity())


def test_what_the_activation_cuts_off_does_not_count():
    # Half of the samples vary much between rows and are cut off, the others vary little between columns.
    data = [n[..., :1] * 3 - 9 + 0.1 * n for n in NOISE[:8]] + [n[..., :1, :] * 0.5 + 1 + 0.1 * n for n in NOISE[8:]]
    cut = arrival_before(nn.ReLU(), data)
    blind = replace(cut, activation=lambda value: value)
    assert error_of(cut, nn.ReLU(), centred=True) < 0.8 * error_of(blind, nn.ReLU(), centred=True)


def test_centred_moments_are_the_covariance_however_far_the_mean_is():
    torch.manual_seed(0)
    graph = graph_of(nn.Linear(8, 4), (1, 50, 8))
    data = [{"x": torch.randn(1, 50, 8).numpy() + 1000} for _ in range(6)]
    for arrival in walk(graph, lambda: iter(data), (TensorSpec("x", (1, 50, 8)),)):
        found = moments_of(arrival, centred=True)
        values = torch.cat([torch.from_numpy(d["x"])[0] for d in data]).double()
        assert torch.allclose(found.hessian[0] / found.columns, torch.cov(values.T, correction=0).float(), atol=1e-3)


def test_moments_take_a_bounded_number_of_columns_in_bounded_memory():
    shape = (1, 4, 64, 64)
    graph = graph_of(nn.Conv2d(4, 4, 3), shape)
    peaks = []
    for samples in (2, 20):
        for arrival in walk(graph, lambda n=samples: batches(shape, n), (TensorSpec("x", shape),)):
            allocated = _Allocations()
            with allocated:
                moments = moments_of(arrival, max_columns=400)
            assert moments.columns == 400
            assert moments.hessian.shape == (1, 36, 36)
            peaks.append(allocated.largest)
    assert peaks[1] <= peaks[0]


class _Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result


def test_grids_follow_scheme_and_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.conv = nn.Embedding(9, 64), nn.Conv1d(5, 5, 1)
            self.deep, self.wide, self.odd = nn.Conv1d(5, 5, 1, groups=5), nn.Linear(64, 40), nn.Linear(40, 4)

        def forward(self, x):
            return self.odd(self.wide(self.deep(self.conv(self.table(x)))))

    graph = copy.deepcopy(torch.export.export(Net(), (torch.zeros(1, 5, dtype=torch.int64),)).module())
    found = {
        precision: {
            layer.name: grid_of(layer, scheme_of(precision), QuantizationOptions()) for layer in layers_of(graph)
        }
        for precision in ("static_wi8_ai8", "weight_only_wi4_afp32")
    }
    assert set(found["static_wi8_ai8"].values()) == {Grid(8)}
    assert found["weight_only_wi4_afp32"] == {
        "table": Grid(8),
        "conv": Grid(4),
        "deep": Grid(8),
        "wide": Grid(4, 32),
        "odd": Grid(4),
    }
