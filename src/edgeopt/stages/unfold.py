"""A layer as a product of matrices: its weight as rows, its inputs as columns."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeopt.stages.layers import Layer


def rows_of(layer: Layer, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the weight (or another tensor of its shape) as `[groups, outputs per group, inputs per output]`.

    Row `r` of group `g` makes output channel `g * (outputs per group) + r`. The kernel of a transposed convolution is
    turned round, so that its columns are those of a convolution over the input with zeros between its values.
    """
    weight = layer.weight if weight is None else weight
    if layer.kind == "transposed":
        spatial = list(range(2, weight.ndim))
        grouped = weight.reshape(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
        weight = grouped.transpose(1, 2).flip([s + 1 for s in spatial])
        return weight.reshape(layer.groups, weight.shape[1], -1)
    return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)


def weight_of_rows(layer: Layer, rows: torch.Tensor) -> torch.Tensor:
    """Inverse of `rows_of`."""
    shape = layer.weight.shape
    if layer.kind == "transposed":
        grouped = rows.reshape(layer.groups, shape[1], shape[0] // layer.groups, *shape[2:])
        return grouped.flip(list(range(3, grouped.ndim))).transpose(1, 2).reshape(shape)
    return rows.reshape(shape)


class Columns:
    """Takes columns out of a layer's inputs, `[groups, inputs per output, columns]`, at most `limit` of each input.

    `rows_of(layer) @ columns` are the layer's outputs there, without bias. Positions are drawn from `seed` and the
    index of the input: the same for each call, so the columns of two versions of one input belong together.
    """

    def __init__(self, layer: Layer, limit: int, seed: int = 0) -> None:
        self._layer = layer
        self._limit = limit
        self._seed = seed

    def of(self, value: torch.Tensor, index: int) -> torch.Tensor:
        """Return the columns of input number `index`."""
        layer = self._layer
        if layer.kind == "linear":
            rows = value.reshape(-1, value.shape[-1])
            return rows[self._chosen(rows.shape[0], index)].t().unsqueeze(0)
        geometry = _geometry(layer)
        if value.ndim == layer.weight.ndim - 1:
            value = value.unsqueeze(0)
        value = _stuffed(value, geometry)
        patches = value
        for axis, (kernel, stride, dilation) in enumerate(geometry["windows"]):
            patches = _windows(patches, axis + 2, kernel, stride, dilation)
        # [batch, channels, *positions, *kernel] → [batch * positions, channels, *kernel], without copying it all
        dims = len(geometry["windows"])
        batch, channels, positions = patches.shape[0], patches.shape[1], patches.shape[2 : 2 + dims]
        order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
        chosen = self._chosen(batch * math.prod(positions), index)
        taken = patches.permute(order)[torch.unravel_index(chosen, (batch, *positions))]
        return taken.reshape(len(chosen), layer.groups, channels // layer.groups, -1).permute(1, 2, 3, 0).flatten(1, 2)

    def _chosen(self, count: int, index: int) -> torch.Tensor:
        if count <= self._limit:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        return torch.randperm(count, generator=generator)[: self._limit]


def _geometry(layer: Layer) -> dict[str, Any]:
    """Return padding before and after, zeros put between values, and windows (kernel, stride, dilation), per axis."""
    arguments = list(layer.node.args)
    kernel = list(layer.weight.shape[2:])
    dims = len(kernel)

    def option(position: int, default: int) -> list[int]:
        found = arguments[position] if len(arguments) > position else default
        values = list(found) if isinstance(found, (list, tuple)) else [found]
        return [int(str(v)) for v in (values * dims if len(values) == 1 else values)]

    stride = option(3, 1)
    if layer.kind == "transposed":
        padding, added, dilation = option(4, 0), option(5, 0), option(7, 1)
        before = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        after = [b + a for b, a in zip(before, added, strict=True)]
        windows = [(k, 1, d) for k, d in zip(kernel, dilation, strict=True)]
        return {"before": before, "after": after, "stuffing": stride, "windows": windows}
    dilation = option(5, 1)
    asked = arguments[4] if len(arguments) > 4 else 0
    if asked == "valid":
        before = after = [0] * dims
    elif asked == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [t // 2 for t in total]
        after = [t - b for t, b in zip(total, before, strict=True)]
    else:
        before = after = option(4, 0)
    windows = list(zip(kernel, stride, dilation, strict=True))
    return {"before": before, "after": after, "stuffing": [1] * dims, "windows": windows}


def _stuffed(value: torch.Tensor, geometry: dict[str, Any]) -> torch.Tensor:
    stuffing = geometry["stuffing"]
    if any(s != 1 for s in stuffing):
        sizes = [(n - 1) * s + 1 for n, s in zip(value.shape[2:], stuffing, strict=True)]
        wide = value.new_zeros((*value.shape[:2], *sizes))
        wide[(slice(None), slice(None), *(slice(None, None, s) for s in stuffing))] = value
        value = wide
    padding: list[int] = []
    for before, after in zip(reversed(geometry["before"]), reversed(geometry["after"]), strict=True):
        padding += [before, after]
    return torch.nn.functional.pad(value, padding) if any(padding) else value


def _windows(value: torch.Tensor, axis: int, kernel: int, stride: int, dilation: int) -> torch.Tensor:
    """Return a view whose `axis` counts windows and whose new last axis runs within one."""
    span = dilation * (kernel - 1) + 1
    return value.unfold(axis, span, stride)[..., ::dilation]
