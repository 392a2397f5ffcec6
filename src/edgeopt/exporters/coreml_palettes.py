"""Weights as indices into a table of 16 or 64 values, chosen by k-means in one dimension.

S. Han, H. Mao, W. J. Dally: "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
Huffman Coding", ICLR 2016. With a scale for each output channel, channels of different size share a table, and an
error counts by the square of its channel's scale: what is minimized is the error of the weight itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Palette:
    """A weight as indices: its value is the table's entry times the channel's scale.

    Attributes:
        indices: uint8 in the weight's shape.
        table: float32 of shape (*groups, entries, 1): how many tables there are along each of the weight's dimensions.
        scale: float32 of the weight's rank, one for each output channel; None for none.
    """

    indices: Tensor
    table: Tensor
    scale: Tensor | None


def palette_of(value: Tensor, bits: int) -> Palette:
    """Return a weight's palette: one table of 2^bits values for the whole weight.

    A weight with no more different values than the table has entries is kept as it is.
    """
    table = _centres(value.float().reshape(-1), None, 2**bits)
    return Palette(_nearest(value.float(), table), table.reshape([1] * value.ndim + [-1, 1]), None)


def grouped_palette_of(value: Tensor, bits: int, axis: int, *, scaled: bool, group: int = 16) -> Palette:
    """Return a weight's palette with a table for each `group` of channels along `axis` and, `scaled`, a scale for each.

    Where the channels do not divide into groups, all share one table: no weight is left out.
    """
    real = value.float()
    largest = real.abs().amax([d for d in range(real.ndim) if d != axis], keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0) if scaled else torch.ones_like(largest)
    channels = real.shape[axis]
    tables = channels // group if channels % group == 0 else 1
    importance = scale.square().expand_as(real)
    found, indices = [], []
    for part, weight in zip((real / scale).chunk(tables, axis), importance.chunk(tables, axis), strict=True):
        found.append(_centres(part.reshape(-1), weight.reshape(-1), 2**bits))
        indices.append(_nearest(part, found[-1]))
    groups = [tables if d == axis else 1 for d in range(real.ndim)]
    return Palette(
        torch.cat(indices, axis), torch.stack(found).reshape([*groups, 2**bits, 1]), scale if scaled else None
    )


def _nearest(value: Tensor, table: Tensor) -> Tensor:
    return torch.bucketize(value, (table[1:] + table[:-1]) / 2).to(torch.uint8)


def _centres(values: Tensor, importance: Tensor | None, count: int) -> Tensor:
    """Return `count` increasing centres with a small sum of importance × squared distance (Lloyd's algorithm)."""
    distinct = values.unique()  # type: ignore[no-untyped-call]
    if len(distinct) <= count:
        return torch.cat([distinct, distinct[-1:].expand(count - len(distinct))])
    ordered, order = values.double().sort()
    weight = torch.ones_like(ordered) if importance is None else importance.double()[order]
    mass = torch.cat([ordered.new_zeros(1), weight.cumsum(0)])
    moment = torch.cat([ordered.new_zeros(1), (weight * ordered).cumsum(0)])
    # The best density of centres goes with the cube root of the density of values.
    density, edges = torch.histogram(ordered.float(), bins=512, weight=weight.float())
    share = density.double().pow(1 / 3).cumsum(0)
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * share[-1]
    centres = edges.double()[torch.searchsorted(share, wanted)]
    for _ in range(ROUNDS):
        cuts = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(ordered))])
        held = mass[bounds[1:]] - mass[bounds[:-1]]
        means = (moment[bounds[1:]] - moment[bounds[:-1]]) / held.clamp(min=1e-300)
        moved = torch.where(held > 0, means, centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.float()
