"""Affine quantization of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RANGES = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}


def _along(parameter: Tensor, rank: int, axis: int | None) -> Tensor:
    """Shape a scalar or a vector so that it broadcasts along `axis`."""
    if parameter.ndim == 0 or axis is None:
        return parameter
    return parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Return clip(round(input / scale) + zero_point), halves to even."""
    low, high, dtype = RANGES[output_dtype]
    stored = torch.round(input / _along(scale, input.ndim, axis))
    if zero_point is not None:
        stored = stored + _along(zero_point.to(stored.dtype), input.ndim, axis)
    return stored.clamp(low, high).to(dtype)


def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Return scale * (input - zero_point)."""
    real = input.to(scale.dtype)
    if zero_point is not None:
        real = real - _along(zero_point.to(scale.dtype), input.ndim, axis)
    return real * _along(scale, input.ndim, axis)


OPS: dict[str, Callable[..., Any]] = {"dequantize": dequantize, "quantize": quantize}
