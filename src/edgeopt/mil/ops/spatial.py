"""Padding arithmetic that convolution and pooling share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

Ints = tuple[int, ...]


def window_pads(
    pad_type: str, pad: Sequence[int], sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Return (before, after) for each spatial dimension.

    `kernel` holds effective sizes, dilation included. `same` makes the output ceil(size / stride) long and puts the
    odd element behind, `same_lower` puts it in front.

    Raises:
        ValueError: the padding type is not one of MIL's.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is not valid, custom, same or same_lower")
    result = []
    for size, k, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + k - size)
        small, large = total // 2, total - total // 2
        result.append((small, large) if pad_type == "same" else (large, small))
    return result


def is_symmetric(pads: Sequence[tuple[int, int]]) -> bool:
    """Whether torch's own `padding` argument can express the pads."""
    return all(before == after for before, after in pads)


def pad_spatial(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the trailing dimensions of `x` with a constant; negative amounts crop."""
    flat = [amount for pair in reversed(pads) for amount in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def effective_kernel(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return the extent of a dilated kernel in each dimension."""
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
