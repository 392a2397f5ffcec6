"""Matrix products: `linear`, `matmul`, `einsum`, `scaled_dot_product_attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = tuple[Tensor, ...]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b; `x` [..., I], `weight` [O, I]."""
    return functional.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched matrix product, either operand transposed in its last two dimensions on request."""
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return torch.matmul(x, y)


def einsum(values: Tensors, equation: str) -> Tensor:
    """Einstein summation; size-1 dimensions broadcast."""
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Return softmax(Q Kᵀ / sqrt(E) + mask) V; Q [..., L, E], K [..., S, E], V [..., S, EV].

    A boolean mask says what takes part, a float mask is added.
    """
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


OPS: dict[str, Callable[..., Any]] = {
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
