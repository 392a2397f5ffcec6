"""Arithmetic, comparisons and logic, element by element with broadcasting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder


def number_or_tensor(g: GraphBuilder, value: Value, other: Value) -> Value | float | int | bool:
    """Return a one-element constant as a Python number where that changes neither shape nor dtype of the result."""
    if (
        isinstance(value, torch.Tensor)
        and not isinstance(other, torch.Tensor)
        and value.numel() == 1
        and value.dim() <= g.rank(other)
        and value.dtype == g.dtype(other)
    ):
        return value.item()
    return value


def _unary(function: Callable[..., Any]) -> Builder:
    return lambda g, node: g.call(function, node.input(0))


def _binary(function: Callable[..., Any]) -> Builder:
    def build(g: GraphBuilder, node: Node) -> Value:
        a, b = node.input(0), node.input(1)
        left = number_or_tensor(g, a, b)
        if isinstance(left, (bool, int, float)) and function in (torch.add, torch.mul):
            return g.call(function, b, left)
        return g.call(function, a, number_or_tensor(g, b, a))

    return build


def _flipped(function: Callable[..., Any], mirrored: Callable[..., Any]) -> Builder:
    """Return the builder of a comparison; `mirrored` is the same one with its operands exchanged."""

    def build(g: GraphBuilder, node: Node) -> Value:
        a, b = node.input(0), node.input(1)
        if isinstance(a, torch.Tensor):
            return g.call(mirrored, b, number_or_tensor(g, a, b))
        return g.call(function, a, number_or_tensor(g, b, a))

    return build


def sub(g: GraphBuilder, node: Node) -> Value:
    """Sub → torch.sub, or torch.rsub from a constant number."""
    a, b = node.input(0), node.input(1)
    left = number_or_tensor(g, a, b)
    if isinstance(left, (bool, int, float)):
        return g.call(torch.rsub, b, left)
    return g.call(torch.sub, a, number_or_tensor(g, b, a))


def div(g: GraphBuilder, node: Node) -> Value:
    """Div → torch.div; integers round toward zero."""
    a, b = node.input(0), node.input(1)
    if not g.is_float(a):
        return g.call(torch.div, a, number_or_tensor(g, b, a), rounding_mode="trunc")
    if isinstance(left := number_or_tensor(g, a, b), (int, float)) and left == 1:
        return g.call(torch.reciprocal, b)
    return g.call(torch.div, a, number_or_tensor(g, b, a))


def mod(g: GraphBuilder, node: Node) -> Value:
    """Mod → torch.remainder (sign of the divisor) or, with fmod, torch.fmod (sign of the dividend)."""
    function = torch.fmod if node.attr_int("fmod") else torch.remainder
    return g.call(function, node.input(0), node.input(1))


def power(g: GraphBuilder, node: Node) -> Value:
    """Pow → torch.pow in the type of the base."""
    base, exponent = node.input(0), node.input(1)
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1 and exponent.dim() <= g.rank(base):
        number = exponent.item()
        if number == 2:
            return g.call(torch.square, base)
        if number == 0.5:
            return g.call(torch.sqrt, base)
        if not isinstance(base, torch.Tensor) and g.is_float(base):
            return g.call(torch.pow, base, int(number) if float(number).is_integer() else number)
    return g.call(torch.Tensor.to, g.call(torch.pow, base, exponent), g.dtype(base))


def _variadic(function: Callable[..., Any]) -> Builder:
    def build(g: GraphBuilder, node: Node) -> Value:
        values = [node.input(i) for i in range(len(node.inputs))]
        if len(values) == 1:
            return g.call(torch.clone, values[0])
        return functools.reduce(functools.partial(_extreme, g, function), values)

    return build


def _extreme(g: GraphBuilder, function: Callable[..., Any], a: Value, b: Value) -> Value:
    if isinstance(a, torch.Tensor):
        a, b = b, a
    bound = number_or_tensor(g, b, a)
    if isinstance(bound, (int, float)) and function in (torch.minimum, torch.maximum):
        return g.call(torch.clamp, a, **{"max" if function is torch.minimum else "min": bound})
    return g.call(function, a, b)


def mean(g: GraphBuilder, node: Node) -> Value:
    """Mean of several tensors → their sum over their number."""
    return g.call(torch.div, _SUM(g, node), len(node.inputs))


def where(g: GraphBuilder, node: Node) -> Value:
    """Where → torch.where."""
    return g.call(torch.where, node.input(0), node.input(1), node.input(2))


def is_inf(g: GraphBuilder, node: Node) -> Value:
    """IsInf → torch.isinf, or a comparison where only one sign counts."""
    x, low, high = node.input(0), node.attr_int("detect_negative", 1), node.attr_int("detect_positive", 1)
    if low and high:
        return g.call(torch.isinf, x)
    if not low and not high:
        return g.call(torch.ne, x, x) if not g.is_float(x) else g.call(torch.zeros_like, x, dtype=torch.bool)
    return g.call(torch.eq, x, -math.inf if low else math.inf)


def shift(g: GraphBuilder, node: Node) -> Value:
    """BitShift → torch.bitwise_left_shift or torch.bitwise_right_shift."""
    left = node.attr_text("direction") == "LEFT"
    return g.call(torch.bitwise_left_shift if left else torch.bitwise_right_shift, node.input(0), node.input(1))


_SUM = _variadic(torch.add)

OPS: dict[str, Builder] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "BitShift": shift,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": div,
    "Equal": _flipped(torch.eq, torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Greater": _flipped(torch.gt, torch.lt),
    "GreaterOrEqual": _flipped(torch.ge, torch.le),
    "IsInf": is_inf,
    "IsNaN": _unary(torch.isnan),
    "Less": _flipped(torch.lt, torch.gt),
    "LessOrEqual": _flipped(torch.le, torch.ge),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": mean,
    "Min": _variadic(torch.minimum),
    "Mod": mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": power,
    "Reciprocal": _unary(torch.reciprocal),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Sqrt": _unary(torch.sqrt),
    "Sub": sub,
    "Sum": _SUM,
    "Tan": _unary(torch.tan),
    "Where": where,
    "Xor": _binary(torch.logical_xor),
}
