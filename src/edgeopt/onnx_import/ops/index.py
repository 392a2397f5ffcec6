"""Slices, gathers and scatters."""

from __future__ import annotations

import operator

import torch
from torch import nn

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.conv import set_weights

_SCATTER_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def slice_(g: GraphBuilder, node: Node) -> Value:
    """Slice → indexing by slices; a negative step → torch.index_select."""
    x, size = node.input(0), g.shape(node.input(0))
    starts, ends = node.ints_at(1, "starts") or [], node.ints_at(2, "ends") or []
    axes = node.ints_at(3, "axes") or list(range(len(starts)))
    steps = node.ints_at(4, "steps") or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(not -len(size) <= a < len(size) for a in axes):
        raise SourceError(f"Slice at {node.place} does not fit its input's {len(size)} axes; the file is damaged")
    if 0 in steps:
        raise SourceError(f"Slice at {node.place} has step 0; the file is damaged")
    parts = [slice(None)] * len(size)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = size[axis]
        if step < 0:
            picked = range(length)[_negative(start, end, step, length)]
            x = g.call(torch.index_select, x, axis, torch.tensor(picked, dtype=torch.int64))
            continue
        first, last, _ = slice(start, end, step).indices(length)
        parts[axis] = slice(first, max(last, first), step)
    if all(p == slice(None) for p in parts):
        return x
    return g.call(operator.getitem, x, tuple(parts))


def _negative(start: int, end: int, step: int, length: int) -> slice:
    """ONNX clamps an end before the first element to −1, which a Python slice would count from the back."""
    start = start + length if start < 0 else start
    end = end + length if end < 0 else end
    return slice(min(max(start, 0), length - 1), end if end >= 0 else None, step)


def gather(g: GraphBuilder, node: Node) -> Value:
    """Gather → indexing by a constant number, nn.Embedding of a stored table, or torch.index_select."""
    x, index, axis = node.input(0), node.input(1), node.attr_int("axis")
    size = g.shape(x)
    if not -len(size) <= axis < len(size):
        raise SourceError(f"Gather at {node.place} has axis {axis} for {len(size)} dimensions; the file is damaged")
    axis %= len(size)
    if isinstance(index, torch.Tensor):
        if index.numel() and not -size[axis] <= int(index.min()) <= int(index.max()) < size[axis]:
            raise SourceError(f"Gather at {node.place} asks for an element outside its input; the file is damaged")
        index = torch.where(index < 0, index + size[axis], index)
        if index.dim() == 0:
            return g.call(torch.select, x, axis, int(index))
    elif axis == 0 and isinstance(x, torch.Tensor) and x.dim() == 2 and g.is_float(x):
        table = x

        def make() -> nn.Module:
            module = nn.Embedding(table.shape[0], table.shape[1], device="meta")
            return set_weights(module, node, weight=table)

        return g.shared_module(g.layer_name(node, x), ("Embedding",), (table,), make, index)
    else:
        index = _wrapped(g, index, size[axis])
    flat = g.call(torch.reshape, index, (-1,))
    taken = _consecutive(g, x, axis, flat) if isinstance(flat, torch.Tensor) else None
    if taken is None:
        taken = g.call(torch.index_select, x, axis, flat)
    if g.rank(index) == 1:
        return taken
    return g.call(torch.reshape, taken, (*size[:axis], *g.shape(index), *size[axis + 1 :]))


def _consecutive(g: GraphBuilder, x: Value, axis: int, index: torch.Tensor) -> Value | None:
    """Return what a run of consecutive indices takes, without an index; None for any other."""
    first = int(index[0]) if index.numel() else 0
    if not index.numel() or not torch.equal(index, torch.arange(first, first + index.numel())):
        return None
    return x if index.numel() == g.shape(x)[axis] else g.call(torch.narrow, x, axis, first, index.numel())


def gather_elements(g: GraphBuilder, node: Node) -> Value:
    """GatherElements → torch.gather."""
    x, axis = node.input(0), node.attr_int("axis")
    return g.call(torch.gather, x, axis, _wrapped(g, node.input(1), g.shape(x)[axis]))


def gather_nd(g: GraphBuilder, node: Node) -> Value:
    """GatherND without batch axes → indexing by one index tensor per axis."""
    x, index = node.input(0), node.input(1)
    if node.attr_int("batch_dims"):
        raise node.unsupported("it has batch_dims")
    parts = tuple(_wrapped(g, g.call(torch.select, index, -1, i), g.shape(x)[i]) for i in range(g.shape(index)[-1]))
    return g.call(operator.getitem, x, parts)


def scatter_elements(g: GraphBuilder, node: Node) -> Value:
    """ScatterElements → torch.scatter or torch.scatter_reduce."""
    x, axis, reduction = node.input(0), node.attr_int("axis"), node.attr_text("reduction", "none")
    index, updates = _wrapped(g, node.input(1), g.shape(x)[axis]), node.input(2)
    if reduction == "none":
        return g.call(torch.scatter, x, axis, index, updates)
    return g.call(torch.scatter_reduce, x, axis, index, updates, _SCATTER_REDUCE[reduction])


def scatter_nd(g: GraphBuilder, node: Node) -> Value:
    """ScatterND → torch.index_put."""
    x, index, updates = node.input(0), node.input(1), node.input(2)
    reduction = node.attr_text("reduction", "none")
    if reduction not in ("none", "add"):
        raise node.unsupported(f"its reduction is {reduction!r}")
    parts = tuple(_wrapped(g, g.call(torch.select, index, -1, i), g.shape(x)[i]) for i in range(g.shape(index)[-1]))
    return g.call(torch.index_put, x, parts, updates, accumulate=reduction == "add")


def _wrapped(g: GraphBuilder, index: Value, size: int) -> Value:
    """Return int64 indices with negative ones counted from the end."""
    if g.dtype(index) != torch.int64:
        index = g.call(torch.Tensor.to, index, torch.int64)
    return g.call(torch.where, g.call(torch.lt, index, 0), g.call(torch.add, index, size), index)


OPS: dict[str, Builder] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
}
