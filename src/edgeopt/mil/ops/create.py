"""Tensors made from shapes, ranges, positions, and values that stand where others were."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeopt.mil.ops.spatial import Ints


def fill(shape: Ints, value: Tensor) -> Tensor:
    """Tensor of one value."""
    return value.reshape(()).expand(shape).clone()


def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    """Tensor of one value in another's shape."""
    return value.reshape(()).expand(ref_tensor.shape).clone()


def shape(x: Tensor) -> Tensor:
    """Sizes of `x`."""
    return torch.tensor(x.shape, dtype=torch.int32)


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """Numbers from `start` (inclusive) to `end` (exclusive)."""
    first, last, stride = start.item(), end.item(), step.item()
    count = max(0, math.ceil((last - first) / stride))
    return torch.arange(count).to(start.dtype) * step + start


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero everything but `lower` diagonals below and `upper` above the main one; a negative number keeps all."""
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None]
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        keep &= rows - columns <= lower
    if upper >= 0:
        keep &= columns - rows <= upper
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    on_value: Tensor,
    off_value: Tensor,
    axis: int = -1,
) -> Tensor:
    """`on_value` where the position along the new `axis` equals the index, `off_value` elsewhere."""
    axis = axis % (indices.ndim + 1)
    positions = torch.arange(one_hot_vector_size).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return torch.where(indices.unsqueeze(axis) == positions, on_value, off_value)


def non_zero(x: Tensor) -> Tensor:
    """Return the indices of the elements that are not zero, one row each."""
    return torch.nonzero(x)


OPS: dict[str, Callable[..., Any]] = {
    "band_part": band_part,
    "fill": fill,
    "fill_like": fill_like,
    "non_zero": non_zero,
    "one_hot": one_hot,
    "range_1d": range_1d,
    "shape": shape,
}
