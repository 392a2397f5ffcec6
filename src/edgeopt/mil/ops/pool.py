"""Pooling: `max_pool`, `avg_pool`, `l2_pool`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.mil.ops.spatial import Ints, is_symmetric, pad_spatial, window_pads

_MAX: dict[int, Callable[..., Tensor]] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG: dict[int, Callable[..., Tensor]] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _native(pads: Sequence[tuple[int, int]], kernel: Ints) -> bool:
    """Whether torch's pooling takes these pads itself: symmetric and at most half a window."""
    return is_symmetric(pads) and all(0 <= before <= k // 2 for (before, _), k in zip(pads, kernel, strict=True))


def _ceil_pads(
    pads: Sequence[tuple[int, int]], sizes: Sequence[int], kernel: Ints, strides: Ints
) -> list[tuple[int, int]]:
    """Lengthen the padding behind so that floor arithmetic gives `ceil_mode`'s output size."""
    result = []
    for (before, after), size, k, s in zip(pads, sizes, kernel, strides, strict=True):
        length = size + before + after
        out = math.ceil((length - k) / s) + 1
        if (out - 1) * s >= size + before and before + after > 0:
            out -= 1
        result.append((before, after + max(0, (out - 1) * s + k - length)))
    return result


def max_pool(
    x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints = (), pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """Maximum over windows of `x` [N, C, *D]; padding never wins."""
    rank = len(kernel_sizes)
    strides = strides or (1,) * rank
    pads = window_pads(pad_type, pad, x.shape[2:], kernel_sizes, strides)
    if _native(pads, kernel_sizes):
        return _MAX[rank](x, kernel_sizes, strides, [before for before, _ in pads], 1, ceil_mode)
    if ceil_mode:
        pads = _ceil_pads(pads, x.shape[2:], kernel_sizes, strides)
    return _MAX[rank](pad_spatial(x, pads, -math.inf), kernel_sizes, strides)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints = (),
    pad: Ints = (),
    ceil_mode: bool = False,
    exclude_padding_from_average: bool = False,
) -> Tensor:
    """Mean over windows of `x` [N, C, *D], padded zeros counted unless excluded."""
    rank = len(kernel_sizes)
    strides = strides or (1,) * rank
    pads = window_pads(pad_type, pad, x.shape[2:], kernel_sizes, strides)
    if _native(pads, kernel_sizes):
        before = [amount for amount, _ in pads]
        return _AVG[rank](x, kernel_sizes, strides, before, ceil_mode, not exclude_padding_from_average)
    # Windows that hang over the padded edge (ceil mode) divide by what lies inside, as in torch.
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if not exclude_padding_from_average:
        inside = pad_spatial(inside, pads, 1.0)
    outer = _ceil_pads(pads, x.shape[2:], kernel_sizes, strides) if ceil_mode else pads
    rest = outer
    if not exclude_padding_from_average:
        rest = [(0, whole[1] - part[1]) for whole, part in zip(outer, pads, strict=True)]
    total = _AVG[rank](pad_spatial(x, outer), kernel_sizes, strides)
    return total / _AVG[rank](pad_spatial(inside, rest), kernel_sizes, strides)


def l2_pool(
    x: Tensor, kernel_sizes: Ints, pad_type: str, strides: Ints = (), pad: Ints = (), ceil_mode: bool = False
) -> Tensor:
    """Root of the sum of squares over windows of `x` [N, C, *D]."""
    rank = len(kernel_sizes)
    strides = strides or (1,) * rank
    pads = window_pads(pad_type, pad, x.shape[2:], kernel_sizes, strides)
    if ceil_mode:
        pads = _ceil_pads(pads, x.shape[2:], kernel_sizes, strides)
    mean = _AVG[rank](pad_spatial(x * x, pads), kernel_sizes, strides)
    return torch.sqrt(mean * math.prod(kernel_sizes))


OPS: dict[str, Callable[..., Any]] = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}
