"""Normalisations over channels, axes or neighbourhoods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.mil.ops.spatial import Ints


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise `x` [N, C, *D] by stored statistics [C]."""
    return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Normalise each channel of each sample of `x` [N, C, *D] by its own statistics."""
    return functional.instance_norm(x, None, None, gamma, beta, True, 0.0, epsilon)


def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise over `axes` (all where none are given); gamma and beta have the shape of those axes."""
    rank = x.ndim
    dims = tuple(range(rank)) if axes is None else tuple(sorted(a % rank for a in axes))
    if dims == tuple(range(rank - len(dims), rank)):
        return functional.layer_norm(x, x.shape[rank - len(dims) :], gamma, beta, epsilon)
    shape = [size if i in dims else 1 for i, size in enumerate(x.shape)]
    centred = x - x.mean(dims, keepdim=True)
    result = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + epsilon)
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide the last three dimensions by the root of their sum of squares."""
    return x * torch.rsqrt((x * x).sum((-3, -2, -1), keepdim=True) + epsilon)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divide by the energy of `size` neighbouring channels of `x` [N, C, *D] (Krizhevsky et al. 2012)."""
    return functional.local_response_norm(x, size, alpha, beta, k)


OPS: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "local_response_norm": local_response_norm,
}
