"""Reductions, cumulative sums, arg-extremes and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder

_Reduction = Callable[[GraphBuilder, Value, list[int], bool], Value]


def _reduction(reduce: _Reduction) -> Builder:
    """Return the builder of a reduction; newer opsets pass the axes as an input, older ones as an attribute."""

    def build(g: GraphBuilder, node: Node) -> Value:
        x = node.input(0)
        axes = node.ints_at(1, "axes")
        if not axes:
            if node.attr_int("noop_with_empty_axes"):
                return g.call(torch.clone, x)
            axes = list(range(g.rank(x)))
        if not axes:
            return reduce(g, g.call(torch.reshape, x, (1,)), [0], False)
        return reduce(g, x, axes, bool(node.attr_int("keepdims", 1)))

    return build


def _with(function: Callable[..., Any]) -> _Reduction:
    return lambda g, x, axes, keep: g.call(function, x, axes, keepdim=keep)


def _summed(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return g.call(torch.sum, x, axes, keepdim=keep, dtype=g.dtype(x))


def _mean(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    if g.is_float(x):
        return g.call(torch.mean, x, axes, keepdim=keep)
    size = torch.Size([g.shape(x)[a] for a in axes]).numel()
    return g.call(torch.div, _summed(g, x, axes, keep), size, rounding_mode="trunc")


def _product(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    rank = g.rank(x)
    for axis in sorted((a % rank for a in axes), reverse=True):
        x = g.call(torch.prod, x, axis, keepdim=keep, dtype=g.dtype(x))
    return x


def _sum_square(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return _summed(g, g.call(torch.mul, x, x), axes, keep)


def _l1(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return _summed(g, g.call(torch.abs, x), axes, keep)


def _l2(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return g.call(torch.sqrt, _sum_square(g, x, axes, keep))


def _log_sum(g: GraphBuilder, x: Value, axes: list[int], keep: bool) -> Value:
    return g.call(torch.log, _summed(g, x, axes, keep))


def _arg(function: Callable[..., Any]) -> Builder:
    """Return the builder of ArgMax or ArgMin."""

    def build(g: GraphBuilder, node: Node) -> Value:
        x, axis, keep = node.input(0), node.attr_int("axis"), bool(node.attr_int("keepdims", 1))
        if not node.attr_int("select_last_index"):
            return g.call(function, x, axis, keep)
        first = g.call(function, g.call(torch.flip, x, [axis]), axis, keep)
        return g.call(torch.rsub, first, g.shape(x)[axis] - 1)

    return build


def cumsum(g: GraphBuilder, node: Node) -> Value:
    """CumSum → torch.cumsum, flipped or shifted where asked."""
    x, axis = node.input(0), int(node.constant(1).item())
    if node.attr_int("reverse"):
        x = g.call(torch.flip, x, [axis])
    y = g.call(torch.cumsum, x, axis, dtype=g.dtype(x))
    if node.attr_int("exclusive"):
        y = g.call(torch.sub, y, x)
    return g.call(torch.flip, y, [axis]) if node.attr_int("reverse") else y


def top_k(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """TopK → torch.topk."""
    count = int(node.constant(1).item()) if node.has(1) else node.attr_int("k")
    result = g.call(
        torch.topk, node.input(0), count, node.attr_int("axis", -1), bool(node.attr_int("largest", 1)), True
    )
    return g.unpack(result, 0), g.unpack(result, 1)


OPS: dict[str, Builder] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": cumsum,
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_with(torch.logsumexp)),
    "ReduceMax": _reduction(_with(torch.amax)),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_with(torch.amin)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_summed),
    "ReduceSumSquare": _reduction(_sum_square),
    "TopK": top_k,
}
