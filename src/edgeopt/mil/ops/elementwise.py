"""Element by element: arithmetic, comparison, logic, elementary functions, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeopt.mil.values import torch_dtype_named


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Quotient; integers divide to the nearest integer below, as their result type demands."""
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="floor")


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return 1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon; below float32's smallest normal number epsilon vanishes."""
    return torch.log(x + epsilon) if epsilon > 1e-38 else torch.log(x)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Return 1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Clamp to [alpha, beta]."""
    return torch.clamp(x, alpha, beta)


def threshold(x: Tensor, alpha: float) -> Tensor:
    """Return max(x, alpha)."""
    return torch.clamp(x, min=alpha)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert; floats go to integers toward zero, anything but zero is true.

    The evaluator keeps every float as float32 and rounds fp16 results itself.
    """
    target = torch_dtype_named(dtype)
    return x.ne(0) if target == torch.bool else x.to(target)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return `a` where `cond`, `b` elsewhere."""
    return torch.where(cond, a, b)


# Lambdas because torch's own builtins have no signature that a plan could read.
OPS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": real_div,
    "floor_div": lambda x, y: torch.floor_divide(x, y),
    "mod": lambda x, y: torch.remainder(x, y),
    "pow": lambda x, y: torch.pow(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "logical_and": lambda x, y: torch.logical_and(x, y),
    "logical_or": lambda x, y: torch.logical_or(x, y),
    "logical_xor": lambda x, y: torch.logical_xor(x, y),
    "logical_not": lambda x: torch.logical_not(x),
    "abs": lambda x: torch.abs(x),
    "acos": lambda x: torch.acos(x),
    "asin": lambda x: torch.asin(x),
    "atan": lambda x: torch.atan(x),
    "atanh": lambda x: torch.atanh(x),
    "cast": cast,
    "ceil": lambda x: torch.ceil(x),
    "clip": clip,
    "cos": lambda x: torch.cos(x),
    "cosh": lambda x: torch.cosh(x),
    "erf": lambda x: torch.erf(x),
    "exp": lambda x: torch.exp(x),
    "exp2": lambda x: torch.exp2(x),
    "floor": lambda x: torch.floor(x),
    "identity": lambda x: x,
    "inverse": inverse,
    "log": log,
    "round": lambda x: torch.round(x),
    "rsqrt": rsqrt,
    "select": select,
    "sign": lambda x: torch.sign(x),
    "sin": lambda x: torch.sin(x),
    "sinh": lambda x: torch.sinh(x),
    "sqrt": lambda x: torch.sqrt(x),
    "square": lambda x: x * x,
    "tan": lambda x: torch.tan(x),
    "tanh": lambda x: torch.tanh(x),
    "threshold": threshold,
}
