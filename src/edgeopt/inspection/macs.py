"""Multiply-accumulates from shapes; an addition of a bias is not counted. None stands for an unknown dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = Sequence[int] | None


def elements(shape: Shape) -> int | None:
    """Return the number of elements, or None if a dimension is not known (negative)."""
    return None if shape is None or any(d < 0 for d in shape) else math.prod(shape)


def times(count_of: Shape, *factors: int | None) -> int | None:
    """Return the elements of a shape times factors."""
    total = elements(count_of)
    for factor in factors:
        if total is None or factor is None or factor < 0:
            return None
        total *= factor
    return total


def convolution(output: Shape, weight: Shape) -> int | None:
    """`weight` is [out channels, in channels / groups, kernel...]."""
    return None if not weight else times(output, elements(weight[1:]))


def transposed_convolution(inputs: Shape, weight: Shape) -> int | None:
    """`weight` is [in channels, out channels / groups, kernel...]."""
    return None if not weight else times(inputs, elements(weight[1:]))


def matmul(left: Shape, output: Shape, transposed: bool = False) -> int | None:
    """`left` is [..., M, K] ([..., K, M] when transposed)."""
    return None if not left else times(output, left[-2] if transposed and len(left) > 1 else left[-1])


def attention(query: Shape, key: Shape, value: Shape) -> int | None:
    """Both products of scaled dot-product attention: [..., L, E] × [..., S, E] and [..., L, S] × [..., S, Ev]."""
    if not query or not key or not value or min(len(query), len(key), len(value)) < 2:
        return None
    return times(query[:-1], key[-2], query[-1] + value[-1] if min(query[-1], value[-1]) >= 0 else None)


def recurrent(gates: int, steps: int, batch: int, inputs: int, hidden: int, directions: int) -> int | None:
    """LSTM (4 gates), GRU (3) or RNN (1) over a whole sequence."""
    if min(steps, batch, inputs, hidden, directions) < 0:
        return None
    return directions * steps * batch * gates * hidden * (inputs + hidden)


def einsum(equation: str, operands: Sequence[Shape]) -> int | None:
    """Two operands: the product over all distinct labels. One operand multiplies nothing; more are not told."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) != 2 or len(operands) != 2 or "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        if shape is None or len(shape) != len(term):
            return None
        for label, size in zip(term, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, size))
    return elements(list(sizes.values()))
