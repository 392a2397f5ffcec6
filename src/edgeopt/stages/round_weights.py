"""Weights rounded one column after another, each column's error made good by the columns still to come.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023. Two things are added. Where the bias takes the mean error out afterwards, the
error's variance counts, so the inputs are centred. A layer with one output per group (a depthwise convolution) weighs
each position by the slope of the activation behind it: what a ReLU6 cuts off needs no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages import half_scales
from edgeopt.stages.layers import Layer
from edgeopt.stages.unfold import Columns, rows_of, weight_of_rows
from edgeopt.stages.walk import Arrival

MAX_COLUMNS = 20_000
LAZY_COLUMNS = 64
DAMPING = 0.01
MAX_DAMPING = 1.0
SLOPE_STEP = 0.02
SMALLEST_SLOPE = 0.02


@dataclass(frozen=True)
class Grid:
    """The integers that weights are rounded to: symmetric, one scale per output channel or per block of inputs.

    Attributes:
        bits: of an integer; the grid is `scale * [-(2**(bits-1) - 1), ..., 2**(bits-1) - 1]`.
        block: inputs that share a scale; None for one scale per output channel.
    """

    bits: int
    block: int | None = None

    @property
    def largest(self) -> int:
        """The integer at the grid's end."""
        return int(2 ** (self.bits - 1) - 1)


def grid_of(layer: Layer, scheme: Scheme, options: QuantizationOptions) -> Grid:
    """Return the grid that a layer's weight is rounded to under a scheme.

    Four bits are for linear layers, in blocks where the inputs divide into them, and for dense convolutions, per output
    channel; embeddings and grouped convolutions, which have few weights per scale, keep eight.
    """
    if scheme.weight_bits == 8 or layer.kind == "embedding" or layer.groups > 1:
        return Grid(7 if options.reduce_range else 8)
    if layer.kind == "linear" and layer.weight.shape[1] % options.block_size == 0:
        return Grid(scheme.weight_bits, options.block_size)
    return Grid(scheme.weight_bits)


@dataclass
class Moments:
    """Second moments of a layer's inputs, summed over samples.

    Attributes:
        hessian: `[groups, inputs, inputs]`, X W Xᵀ of the inputs that the layer will meet, weighed by W.
        sums: `[groups, inputs, 1]`, X W 1.
        weight: `[groups, 1, 1]`, the sum of W.
        columns: summed so far.
    """

    hessian: torch.Tensor
    sums: torch.Tensor
    weight: torch.Tensor
    columns: int = 0

    @classmethod
    def empty(cls, groups: int, inputs: int) -> Moments:
        """Return the moments of no columns."""
        return cls(torch.zeros(groups, inputs, inputs), torch.zeros(groups, inputs, 1), torch.zeros(groups, 1, 1))

    def add(self, columns: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the columns `[groups, inputs, n]` of one sample, weighed by `[groups or 1, 1, n]`."""
        weights = torch.ones(1, 1, columns.shape[-1]) if weights is None else weights
        weighed = columns * weights
        self.hessian += weighed @ columns.mT
        self.sums += weighed.sum(-1, keepdim=True)
        self.weight += weights.sum(-1, keepdim=True)
        self.columns += columns.shape[-1]

    def centred(self) -> Moments:
        """Return the moments about the mean."""
        mean = self.sums / self.weight.clamp(min=1e-12)
        return Moments(self.hessian - self.sums @ mean.mT, torch.zeros_like(self.sums), self.weight, self.columns)


def moments_of(arrival: Arrival, *, centred: bool = False, max_columns: int = MAX_COLUMNS) -> Moments:
    """Sum the second moments of a layer's inputs, sample by sample, over at most `max_columns` positions.

    Memory is that of one square matrix per group and of one sample's columns.
    """
    rows = rows_of(arrival.layer)
    moments = Moments.empty(rows.shape[0], rows.shape[2])
    columns = Columns(arrival.layer, max(1, max_columns // len(arrival.inputs)))
    shift = torch.zeros(1)
    for i, value in enumerate(arrival.inputs):
        found = columns.of(value, i)
        if centred and i == 0:
            shift = found.mean(-1, keepdim=True)  # near the mean, so that little is lost where it is far from zero
        moments.add(found - shift, _slopes(arrival, rows, found) if rows.shape[1] == 1 else None)
    return moments.centred() if centred else moments


def _slopes(arrival: Arrival, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the slope of the activation at the only output of each group, `[groups, 1, n]`, never quite zero."""
    outputs = (rows @ columns)[:, 0]
    if (bias := arrival.layer.bias) is not None:
        outputs = outputs + bias[:, None]
    step = SLOPE_STEP * outputs.std().clamp(min=1e-6)
    slope = (arrival.activation(outputs + step) - arrival.activation(outputs - step)) / (2 * step)
    return slope.abs().clamp(SMALLEST_SLOPE, 1.0)[:, None]


def damping_of(moments: Moments) -> float:
    """Return the share of the mean second moment to add to the diagonal: 1 %, and more where positions are few.

    With fewer positions than inputs the moments know nothing of most directions, and an undamped inverse would make
    good on the samples what it spoils everywhere else.
    """
    inputs = moments.hessian.shape[-1]
    return DAMPING * min(MAX_DAMPING / DAMPING, max(1.0, 4 * inputs / max(1, moments.columns)))


def round_weights(arrival: Arrival, grid: Grid, *, centred: bool = False) -> None:
    """Round the weight of the layer that a walk has arrived at.

    Ensures that every weight is an integer times its scale, and that the scale is the largest magnitude that shares it
    divided by `grid.largest`, bit for bit.

    Args:
        arrival: of the walk.
        grid: to round to.
        centred: whether the mean of the output error does not count, since the bias will take it out.
    """
    layer = arrival.layer
    moments = moments_of(arrival, centred=centred)
    rounded = round_rows(rows_of(layer), moments, grid, damping=damping_of(moments))
    layer.set_weight(weight_of_rows(layer, rounded))


def round_nearest(layer: Layer, grid: Grid) -> None:
    """Round the weight of a layer to the nearest integers of the same grid."""
    rows = layer.weight.unsqueeze(0) if layer.kind == "embedding" else rows_of(layer)
    blocks = rows if grid.block is None else rows.reshape(*rows.shape[:2], -1, grid.block)
    scale = recoverable_scale(blocks.abs().amax(-1, keepdim=True), grid.largest)
    rounded = (_integers(blocks, scale, grid.largest) * scale).reshape(rows.shape)
    layer.set_weight(rounded.squeeze(0) if layer.kind == "embedding" else weight_of_rows(layer, rounded))


def recoverable_scale(largest: torch.Tensor, end: int) -> torch.Tensor:
    """Return `largest / end` in eleven significant bits; it comes back, bit for bit, as `(scale * end) / end`.

    A grid of zeros has scale 1.
    """
    return half_scales.nearest(torch.where(largest > 0, largest / end, torch.ones_like(largest)))


def round_rows(rows: torch.Tensor, moments: Moments, grid: Grid, *, damping: float = DAMPING) -> torch.Tensor:
    """Return `[groups, outputs, inputs]` rounded so that the output error on the moments' inputs is small.

    Args:
        rows: float32 weights.
        moments: of the inputs.
        grid: to round to.
        damping: added to the diagonal, as a share of its mean.
    """
    hessian = moments.hessian.double()
    mean = hessian.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-30)
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype)
    damped = hessian + (damping * mean)[:, None, None] * identity
    inverse = torch.linalg.inv(damped)
    upper = torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True).float()
    return _compensated(rows.clone(), upper, grid)


def _compensated(work: torch.Tensor, upper: torch.Tensor, grid: Grid) -> torch.Tensor:
    count = work.shape[2]
    result = torch.empty_like(work)
    scale = end = torch.empty(0)
    block = grid.block or count
    for start in range(0, count, LAZY_COLUMNS):
        stop = min(start + LAZY_COLUMNS, count)
        errors = torch.empty(*work.shape[:2], stop - start)
        part = work[:, :, start:stop].clone()
        for column in range(start, stop):
            if column % block == 0:
                # Its largest weight takes the grid's end whatever compensation adds, so that the scale can be read.
                fresh = work[:, :, column : column + block].clone()
                fresh[:, :, : stop - column] = part[:, :, column - start : column - start + block]
                largest, end = fresh.abs().max(-1)
                scale = recoverable_scale(largest, grid.largest)
                end = end + column
            values = part[:, :, column - start]
            integers = _integers(values, scale, grid.largest)
            integers = torch.where((end == column) & (values != 0), grid.largest * values.sign(), integers)
            rounded = integers * scale
            result[:, :, column] = rounded
            error = (values - rounded) / upper[:, column, column, None]
            errors[:, :, column - start] = error
            part[:, :, column - start :] -= error[:, :, None] * upper[:, None, column, column:stop]
        work[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return result


def _integers(values: torch.Tensor, scale: torch.Tensor, largest: int) -> torch.Tensor:
    return torch.round(values / scale).clamp(-largest, largest)
