"""Constants, casts and operators that do nothing in inference."""

from __future__ import annotations

import math

import torch

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import MAX_FOLDED_ELEMENTS, GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.tensors import check_elements, torch_dtype


def constant(_: GraphBuilder, node: Node) -> Value:
    """Constant → its value."""
    if "value" in node.attributes:
        return node.attr_tensor("value")
    for name, dtype in (("value_float", torch.float32), ("value_int", torch.int64)):
        for attribute in (name, f"{name}s"):
            if attribute in node.attributes:
                return torch.tensor(node.attributes[attribute], dtype=dtype)
    raise node.unsupported("its value is no dense tensor of numbers")


def constant_of_shape(g: GraphBuilder, node: Node) -> Value:
    """ConstantOfShape → a filled tensor."""
    size = tuple(node.ints_at(0, "shape") or ())
    check_elements(size, f"{node.op} at {node.place}")
    fill = node.attr_tensor("value") if "value" in node.attributes else torch.zeros(1)
    return g.call(torch.full, size, fill.item(), dtype=fill.dtype)


def range_(_: GraphBuilder, node: Node) -> Value:
    """Range → a constant."""
    start, limit, step = (node.constant(i) for i in range(3))
    length = (limit.item() - start.item()) / step.item() if step.item() else math.inf
    if not length <= MAX_FOLDED_ELEMENTS:  # NaN too
        raise SourceError(f"Range at {node.place} has no sensible length; the file is damaged")
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def eye_like(g: GraphBuilder, node: Node) -> Value:
    """EyeLike → a constant."""
    rows, columns = g.shape(node.input(0))
    dtype = torch_dtype(node.attr_int("dtype"), node.place) if "dtype" in node.attributes else g.dtype(node.input(0))
    line = torch.arange(rows)[:, None] + node.attr_int("k") == torch.arange(columns)[None, :]
    return line.to(dtype)


def one_hot(g: GraphBuilder, node: Node) -> Value:
    """OneHot → comparison of the indices with a constant range, then the two values chosen by it."""
    index, depth, values = node.input(0), int(node.constant(1).item()), node.constant(2)
    rank = g.rank(index) + 1
    axis = node.attr_int("axis", -1) % rank
    line = torch.arange(depth, dtype=g.dtype(index)).reshape([-1 if i == axis else 1 for i in range(rank)])
    wrapped = g.call(torch.where, g.call(torch.lt, index, 0), g.call(torch.add, index, depth), index)
    hit = g.call(torch.eq, g.call(torch.unsqueeze, wrapped, axis), line)
    return g.call(torch.where, hit, values[1], values[0])


def trilu(g: GraphBuilder, node: Node) -> Value:
    """Trilu → torch.triu or torch.tril."""
    diagonal = int(node.constant(1).item()) if node.has(1) else 0
    return g.call(torch.triu if node.attr_int("upper", 1) else torch.tril, node.input(0), diagonal)


def cast(g: GraphBuilder, node: Node) -> Value:
    """Cast → torch.Tensor.to; a cast to the same type is left out."""
    dtype = torch_dtype(node.attr_int("to"), f"the result of {node.place}")
    x = node.input(0)
    return x if g.dtype(x) == dtype else g.call(torch.Tensor.to, x, dtype)


def cast_like(g: GraphBuilder, node: Node) -> Value:
    """CastLike → torch.Tensor.to."""
    return g.call(torch.Tensor.to, node.input(0), g.dtype(node.input(1)))


def identity(_: GraphBuilder, node: Node) -> Value:
    """Identity → the input itself."""
    return node.input(0)


def dropout(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """Dropout in inference → the input itself, and a mask that keeps everything."""
    x = node.input(0)
    if node.has(2) and bool(node.constant(2).item()):
        raise node.unsupported("it is in training mode; export the model in eval mode")
    if not node.used(1):
        return (x,)
    return x, g.call(torch.ones_like, x, dtype=torch.bool)


OPS: dict[str, Builder] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Dropout": dropout,
    "EyeLike": eye_like,
    "Identity": identity,
    "OneHot": one_hot,
    "Range": range_,
    "Trilu": trilu,
}
