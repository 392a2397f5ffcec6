"""Values that an ONNX file holds as integers, computed by the imported graph as the real numbers they stand for."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import UnsupportedOpError
from edgeopt.onnx_import.graph import RANGE, GraphBuilder
from edgeopt.onnx_import.grid import Grid
from edgeopt.onnx_import.node import Node, Quantized, Value

_SAME_VALUES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GlobalMaxPool", "Identity", "MaxPool",
    "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax)
_KEEPS_SIGN = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_KEEPS_SIGN_TOO = frozenset({torch.reshape, torch.permute, torch.flatten, torch.squeeze, torch.unsqueeze, torch.mean,
                             F.max_pool2d, F.avg_pool2d, torch.amax, operator.getitem,
                             torch.select, torch.narrow})  # fmt: skip


def passes_through(op: str, inputs: Sequence[Value | Quantized | None]) -> bool:
    """Whether an operator on quantized inputs does to the real numbers what it does to the integers."""
    if op not in _SAME_VALUES or not isinstance(inputs[0], Quantized):
        return False
    grid = inputs[0].grid
    if grid is not None and not grid.uniform:
        return False
    if op == "Concat":
        return all(isinstance(i, Quantized) and _same(i.grid, grid) for i in inputs)
    return not any(isinstance(i, Quantized) for i in inputs[1:])


def with_real_fill(inputs: Sequence[Value | None], grid: Grid | None) -> list[Value | None]:
    """Return the inputs of a Pad with the real number that its integer fill (0 by default) stands for."""
    given = inputs[2] if len(inputs) > 2 else None
    if grid is None or isinstance(given, fx.Node):
        return list(inputs)
    integer = torch.zeros(()) if given is None else given.reshape(()).float()
    fill = (integer - grid.zero_point.reshape(()).float()) * grid.scale.reshape(())
    padded = [*inputs, None, None][: max(len(inputs), 3)]
    return [fill if i == 2 else value for i, value in enumerate(padded)]


def stored_integers(g: GraphBuilder, value: Quantized) -> Value:
    """Return the integers themselves, for what reads them as such.

    Raises:
        UnsupportedOpError: their scale is computed at run time.
    """
    if value.grid is None:
        raise UnsupportedOpError(g.op, g.place, "it reads integers whose scale is computed at run time")
    return rounded(g, value.real, value.grid)


def dequantized_before(
    g: GraphBuilder, node: onnx.NodeProto, table: torch.Tensor, scope: Mapping[str, object]
) -> Quantized | None:
    """Return the real numbers of a stored `table`, of which `node`, a DequantizeLinear, reads the rows taken; or None.

    Before: DequantizeLinear(Gather(int8 table, rows))
    After: Gather(real table, rows)
    """
    scale, zero = (scope.get(name) for name in [*node.input[1:], ""][:2])
    if not isinstance(scale, torch.Tensor) or scale.numel() != 1:
        return None
    zero = zero if isinstance(zero, torch.Tensor) else torch.zeros((), dtype=table.dtype)
    if zero.numel() != 1 or zero.dtype != table.dtype:
        return None
    real = (table.float() - zero.reshape(()).float()) * scale.reshape(())
    stored = g.initializer_name(table)
    if stored is not None:
        g.initializer(stored.removesuffix("_quantized"), real)
    return Quantized(real, Grid(scale.float(), zero, table.dtype))


def quantized_by(g: GraphBuilder, node: Node, x: Value, grid: Grid) -> Quantized:
    """Return `x` as quantized by `grid`, cut off where its integers cannot go on."""
    low, high = grid.range
    if isinstance(x, torch.Tensor) or not grid.uniform:
        return Quantized(x, grid)
    begins_at_zero = int(grid.zero_point) == grid.integer_range[0]
    if begins_at_zero and not _never_negative(g, x):
        six = math.isclose(high, 6.0, rel_tol=1e-3)
        clipped = g.module(f"{g.layer_name(node)}_clip", nn.ReLU6() if six else nn.ReLU(), x)
        assert isinstance(clipped, fx.Node)
        x = clipped
    known = x.meta.get(RANGE, (low, high))
    x.meta[RANGE] = (min(known[0], low), max(known[1], high))
    return Quantized(x, grid)


def _never_negative(g: GraphBuilder, x: object, depth: int = 12) -> bool:
    """Whether `x` is known to have no negative element, from the layers before it."""
    if not isinstance(x, fx.Node):
        return isinstance(x, (int, float)) and x >= 0
    if depth == 0 or x.meta.get(RANGE, (-1.0, 0.0))[0] >= 0:
        return depth > 0
    if x.op == "call_module":
        module = g.root.get_submodule(str(x.target))
        return isinstance(module, _NEVER_NEGATIVE) or (
            isinstance(module, _KEEPS_SIGN) and _never_negative(g, x.args[0], depth - 1)
        )
    if x.op != "call_function":
        return False
    if x.target is torch.cat:
        parts = x.args[0]
        return isinstance(parts, (list, tuple)) and all(_never_negative(g, part, depth - 1) for part in parts)
    if x.target in (torch.add, torch.mul):
        return all(_never_negative(g, part, depth - 1) for part in x.args)
    return x.target in _KEEPS_SIGN_TOO and _never_negative(g, x.args[0], depth - 1)


def rounded(g: GraphBuilder, x: Value, grid: Grid) -> Value:
    """Return the integers of `grid` nearest to `x`."""
    scale, zero = grid.shaped(g.rank(x))
    low, high = grid.integer_range
    steps = g.call(torch.round, g.call(torch.div, g.call(torch.Tensor.to, x, torch.float32), scale))
    clamped = g.call(torch.clamp, g.call(torch.add, steps, zero.float()), min=low, max=high)
    return g.call(torch.Tensor.to, clamped, grid.dtype)


def _same(a: Grid | None, b: Grid | None) -> bool:
    if a is None or b is None:
        return a is b
    same = torch.equal(a.scale.reshape(-1), b.scale.reshape(-1)) and a.dtype == b.dtype
    return same and torch.equal(a.zero_point.reshape(-1), b.zero_point.reshape(-1))
