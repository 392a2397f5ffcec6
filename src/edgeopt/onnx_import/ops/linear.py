"""Matrix products."""

from __future__ import annotations

import torch
from torch import nn

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.conv import set_weights


def gemm(g: GraphBuilder, node: Node) -> Value:
    """Gemm with a stored weight → nn.Linear (alpha and beta folded in); any other → matmul and add."""
    a, b, c = node.input(0), node.input(1), node.optional(2)
    alpha, beta = node.attr_float("alpha", 1.0), node.attr_float("beta", 1.0)
    if node.attr_int("transA"):
        a = g.call(torch.transpose, a, 0, 1)
    if isinstance(b, torch.Tensor) and b.dim() == 2 and g.is_float(b):
        stored = b if node.attr_int("transB") else b.t()
        weight = stored if alpha == 1 else stored * alpha
        bias = _row(c, weight.shape[0], beta)
        y = _linear(g, node, a, b, weight, bias, (bool(node.attr_int("transB")), alpha, beta))
        if c is None or bias is not None:
            return y
    else:
        if node.attr_int("transB"):
            b = g.call(torch.transpose, b, 0, 1)
        y = g.call(torch.matmul, a, b)
        y = y if alpha == 1 else g.call(torch.mul, y, alpha)
    if c is None:
        return y
    return g.call(torch.add, y, c if beta == 1 else g.call(torch.mul, c, beta))


def matmul(g: GraphBuilder, node: Node) -> Value:
    """MatMul with a stored matrix on the right → nn.Linear; any other → torch.matmul."""
    a, b = node.input(0), node.input(1)
    if isinstance(b, torch.Tensor) and b.dim() == 2 and g.is_float(b) and not isinstance(a, torch.Tensor):
        return _linear(g, node, a, b, b.t(), None, (False,))
    return g.call(torch.matmul, a, b)


def einsum(g: GraphBuilder, node: Node) -> Value:
    """Einsum → torch.einsum, which spells the same equations."""
    equation = node.attr_text("equation").replace(" ", "")
    return g.call(torch.einsum, equation, [node.input(i) for i in range(len(node.inputs))])


def _linear(
    g: GraphBuilder, node: Node, x: Value, stored: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    form: tuple[object, ...],
) -> Value:  # fmt: skip
    def make() -> nn.Module:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        return set_weights(module, node, weight=weight, bias=bias)

    kept = (stored,) if bias is None else (stored, bias)
    return g.shared_module(g.layer_name(node, stored), ("Linear", *form), kept, make, x)


def _row(c: Value | None, width: int, beta: float) -> torch.Tensor | None:
    """Return `c` as a bias of `width` values, or None if it is no constant row."""
    if not isinstance(c, torch.Tensor) or c.numel() not in (1, width) or c.shape[:-1].numel() != 1:
        return None
    row = c.reshape(-1)
    row = row if row.numel() == width else row.expand(width).contiguous()
    return row if beta == 1 else row * beta


OPS: dict[str, Builder] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
