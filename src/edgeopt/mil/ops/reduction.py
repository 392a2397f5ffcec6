"""Reductions over axes, cumulative sums, and what sorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeopt.mil.ops.spatial import Ints


def _dims(x: Tensor, axes: Ints | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else tuple(a % x.ndim for a in axes)


def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Sum over `axes`, all where none are given."""
    return x.sum(_dims(x, axes), keepdim=keep_dims)


def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Mean over `axes`; that of integers is cut to an integer."""
    values = x if x.is_floating_point() else x.double()
    return values.mean(_dims(x, axes), keepdim=keep_dims)


def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Maximum over `axes`."""
    return x.amax(_dims(x, axes), keepdim=keep_dims)


def reduce_min(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Minimum over `axes`."""
    return x.amin(_dims(x, axes), keepdim=keep_dims)


def reduce_prod(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Product over `axes`."""
    for axis in sorted(_dims(x, axes), reverse=True):
        x = x.prod(axis, keepdim=keep_dims)
    return x


def reduce_sum_square(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Sum of squares over `axes`."""
    return reduce_sum(x * x, axes, keep_dims)


def reduce_l1_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Sum of absolute values over `axes`."""
    return reduce_sum(x.abs(), axes, keep_dims)


def reduce_l2_norm(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Root of the sum of squares over `axes`."""
    return torch.sqrt(reduce_sum_square(x, axes, keep_dims))


def reduce_log_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Logarithm of the sum over `axes`."""
    return torch.log(reduce_sum(x, axes, keep_dims))


def reduce_log_sum_exp(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Logarithm of the sum of exponentials over `axes`."""
    return torch.logsumexp(x, _dims(x, axes), keepdim=keep_dims)


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """Index of the maximum along `axis`; the declared output type decides the integer width."""
    return x.argmax(axis, keepdim=keep_dims)


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False) -> Tensor:
    """Index of the minimum along `axis`."""
    return x.argmin(axis, keepdim=keep_dims)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Sum up along `axis`, optionally from the end, optionally without the element itself."""
    total = (x.flip(axis) if reverse else x).cumsum(axis)
    if exclusive:
        total = total - (x.flip(axis) if reverse else x)
    return total.flip(axis) if reverse else total


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Return the indices that sort `x` along `axis`; equal values keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    return_indices: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the `k` largest (smallest) values along `axis` and their indices, always sorted; -1 means all of them."""
    k = x.shape[axis] if k == -1 else k
    values, indices = torch.topk(x, k, axis, largest=not ascending, sorted=True)
    return (values, indices) if return_indices else values


OPS: dict[str, Callable[..., Any]] = {
    "argsort": argsort,
    "cumsum": cumsum,
    "reduce_argmax": reduce_argmax,
    "reduce_argmin": reduce_argmin,
    "reduce_l1_norm": reduce_l1_norm,
    "reduce_l2_norm": reduce_l2_norm,
    "reduce_log_sum": reduce_log_sum,
    "reduce_log_sum_exp": reduce_log_sum_exp,
    "reduce_max": reduce_max,
    "reduce_mean": reduce_mean,
    "reduce_min": reduce_min,
    "reduce_prod": reduce_prod,
    "reduce_sum": reduce_sum,
    "reduce_sum_square": reduce_sum_square,
    "topk": topk,
}
