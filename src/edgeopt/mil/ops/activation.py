"""Activations with parameters, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """min(beta, x) where x >= 0, min(beta, alpha * x) elsewhere."""
    return torch.clamp(torch.where(x >= 0, x, x * alpha), max=beta)


def elu(x: Tensor, alpha: float) -> Tensor:
    """Return x where positive, alpha * (exp(x) - 1) elsewhere."""
    return functional.elu(x, alpha)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, exact or by MIL's tanh or sigmoid approximation."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """Return x where not negative, alpha * x elsewhere."""
    return functional.leaky_relu(x, alpha)


def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha * x + beta."""
    return x * alpha + beta


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Leaky ReLU with one slope for each channel of `x` [N, C, ...]."""
    return functional.prelu(x, alpha)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha * tanh(beta * x)."""
    return torch.tanh(x * beta) * alpha


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha * x + beta, clamped to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without torch's linear shortcut for large x."""
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-x.abs()))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return alpha_c * log(1 + exp(beta_c * x)) for each channel of `x` [N, C, ...]."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    return softplus(x * beta.reshape(shape)) * alpha.reshape(shape)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Exponentials normalised along `axis`."""
    return torch.softmax(x, axis)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """Return x where x >= alpha, 0 elsewhere."""
    return torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype))


OPS: dict[str, Callable[..., Any]] = {
    "clamped_relu": clamped_relu,
    "elu": elu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "linear_activation": linear_activation,
    "prelu": prelu,
    "relu": lambda x: torch.relu(x),
    "relu6": lambda x: functional.relu6(x),
    "scaled_tanh": scaled_tanh,
    "sigmoid": lambda x: torch.sigmoid(x),
    "sigmoid_hard": sigmoid_hard,
    "silu": lambda x: functional.silu(x),
    "softmax": softmax,
    "softplus": softplus,
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: functional.softsign(x),
    "thresholded_relu": thresholded_relu,
}
