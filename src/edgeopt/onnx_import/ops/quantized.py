"""Quantized operators, imported in float.

An activation's integers stand for real numbers; the imported graph computes those and rounds nothing. Weights become
the real numbers that their integers stand for. Two things that integers do are kept: the range of each activation goes
to its node's `meta["range"]`, and where a range begins at zero, so that quantizing cuts off what is negative, an
activation stands in its place (converters drop a ReLU before such a range).

Before: QuantizeLinear(x) → DequantizeLinear → Conv(·, DequantizeLinear(int8 weights)) → QuantizeLinear(zero point 0)
After: nn.Conv2d(x) → nn.ReLU, with a range on x and on the result
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import INTEGERS, GraphBuilder
from edgeopt.onnx_import.grid import Grid
from edgeopt.onnx_import.node import Node, Quantized, Value
from edgeopt.onnx_import.ops import Builder, activation, conv, linear, pool
from edgeopt.onnx_import.ops.quantized_values import quantized_by, rounded
from edgeopt.onnx_import.tensors import torch_dtype


def quantize_linear(g: GraphBuilder, node: Node) -> Value | Quantized:
    """QuantizeLinear → nothing but the range, and an activation where the range begins at zero."""
    x = node.input(0)
    if not isinstance(node.input(1), torch.Tensor):
        return Quantized(x, None)
    grid = _grid(node, 1, 2)
    return rounded(g, x, grid) if isinstance(x, torch.Tensor) else quantized_by(g, node, x, grid)


def dequantize_linear(g: GraphBuilder, node: Node) -> Value:
    """DequantizeLinear → the real numbers: of a stored tensor they are computed now."""
    return _real(g, node, 0, 1, 2, node.attr_int("axis", 1), node.attr_int("block_size"))


def dynamic_quantize_linear(_: GraphBuilder, node: Node) -> tuple[Value | Quantized, ...]:
    """DynamicQuantizeLinear → its input, with scale 1 and zero point 0."""
    return Quantized(node.input(0), None), torch.tensor(1.0), torch.tensor(0, dtype=torch.uint8)


def qlinear_conv(g: GraphBuilder, node: Node) -> Quantized:
    """QLinearConv → nn.Conv{1,2,3}d of real weights."""
    x, weight = _real(g, node, 0, 1, 2, 1), _real(g, node, 3, 4, 5, 0)
    bias = None
    if node.has(8):
        bias = node.constant(8).float() * (node.constant(1) * node.constant(4)).reshape(-1)
    y = conv.conv(g, replace(node, inputs=(x, weight, bias), grids={}))
    return quantized_by(g, node, y, _grid(node, 6, 7))


def qlinear_matmul(g: GraphBuilder, node: Node) -> Quantized:
    """QLinearMatMul → nn.Linear of real weights, or torch.matmul."""
    a, b = _real(g, node, 0, 1, 2, -2), _real(g, node, 3, 4, 5, -1)
    y = linear.matmul(g, replace(node, inputs=(a, b), grids={}))
    return quantized_by(g, node, y, _grid(node, 6, 7))


def qgemm(g: GraphBuilder, node: Node) -> Value | Quantized:
    """QGemm of onnxruntime → nn.Linear of real weights."""
    a = _real(g, node, 0, 1, 2, 0)
    b = _real(g, node, 3, 4, 5, 0 if node.attr_int("transB") else 1)
    c = None
    if node.has(6):
        c = node.constant(6).float() * node.constant(1) * node.constant(4) * node.attr_float("alpha", 1.0)
    y = linear.gemm(g, replace(node, inputs=(a, b, c), grids={}))
    return quantized_by(g, node, y, _grid(node, 7, 8)) if node.has(7) else y


def matmul_integer(g: GraphBuilder, node: Node) -> Value:
    """MatMulInteger → nn.Linear of the integers as real numbers; the product with their scales follows in the file."""
    a, b = _centred(g, node, 0, 2, -2), _centred(g, node, 1, 3, -1)
    return _of_integers(linear.matmul(g, replace(node, inputs=(a, b), grids={})))


def conv_integer(g: GraphBuilder, node: Node) -> Value:
    """ConvInteger → nn.Conv{1,2,3}d of the integers as real numbers; the product with their scales follows."""
    x, weight = _centred(g, node, 0, 2, 1), _centred(g, node, 1, 3, 0)
    return _of_integers(conv.conv(g, replace(node, inputs=(x, weight), grids={})))


def _of_integers(y: Value) -> Value:
    if isinstance(y, fx.Node):
        y.meta[INTEGERS] = True  # patterns.py moves the scale that follows into the layer
    return y


def _binary(function: Callable[..., torch.Tensor]) -> Builder:
    """Return the builder of an operator of onnxruntime on two quantized values."""

    def build(g: GraphBuilder, node: Node) -> Quantized:
        y = g.call(function, _real(g, node, 0, 1, 2, 1), _real(g, node, 3, 4, 5, 1))
        return quantized_by(g, node, y, _grid(node, 6, 7))

    return build


def _unary(builder: Builder) -> Builder:
    """Return the builder of an operator of onnxruntime on one quantized value, from that of its float counterpart."""

    def build(g: GraphBuilder, node: Node) -> Quantized:
        if node.attr_int("channels_last"):
            raise node.unsupported("its channels come last")
        y = builder(g, replace(node, inputs=(_real(g, node, 0, 1, 2, 1),), grids={}))
        assert not isinstance(y, (Quantized, tuple))
        return quantized_by(g, node, y, _grid(node, 3, 4))

    return build


def qlinear_concat(g: GraphBuilder, node: Node) -> Quantized:
    """QLinearConcat of onnxruntime → torch.cat."""
    parts = [_real(g, node, i, i + 1, i + 2, 1) for i in range(2, len(node.inputs), 3)]
    return quantized_by(g, node, g.call(torch.cat, parts, node.attr_int("axis")), _grid(node, 0, 1))


def _grid(node: Node, scale_at: int, zero_at: int) -> Grid:
    scale = node.constant(scale_at)
    zero = node.constant(zero_at) if node.has(zero_at) else None
    declared = node.attr_int("output_dtype")
    dtype = zero.dtype if zero is not None else torch_dtype(declared, node.place) if declared else torch.uint8
    if dtype.is_floating_point:
        raise node.unsupported(f"it quantizes to {dtype}; only integers can be imported")
    zero = torch.zeros(scale.shape, dtype=dtype) if zero is None else zero
    if not scale.numel() or scale.numel() != zero.numel() or not bool((scale > 0).all()):
        raise SourceError(f"{node.op} at {node.place}: its scale and zero point do not fit; the file is damaged")
    return Grid(scale.float(), zero, dtype, node.attr_int("axis", 1))


def _real(g: GraphBuilder, node: Node, at: int, scale_at: int, zero_at: int, axis: int, block: int = 0) -> Value:
    """Return the real numbers that input `at` stands for."""
    x = node.input(at)
    if at in node.grids:
        grid = node.grids[at]
        scale, zero = node.input(scale_at), node.optional(zero_at)
        if grid is None or not isinstance(scale, torch.Tensor):
            return x
        zero = zero if isinstance(zero, torch.Tensor) else torch.zeros_like(grid.zero_point)
        if torch.equal(scale.float().reshape(-1), grid.scale.reshape(-1)) and torch.equal(
            zero.reshape(-1).int(), grid.zero_point.reshape(-1).int()
        ):
            return x
        x = rounded(g, x, grid)  # read with another scale than written: a product in disguise
    scale = node.constant(scale_at)
    stored = g.initializer_name(x)
    zero = node.constant(zero_at) if node.has(zero_at) else torch.zeros((), dtype=torch.int32)
    rank = g.rank(x)
    if block:
        size = g.shape(x)[axis]
        scale, zero = (
            v if v.dim() == 0 else v.repeat_interleave(block, dim=axis).narrow(axis, 0, size) for v in (scale, zero)
        )
    elif scale.numel() > 1:
        if rank == 0 or not -rank <= axis < rank:
            raise SourceError(f"{node.op} at {node.place} has axis {axis} for {rank} dimensions; the file is damaged")
        aligned = [-1 if i == axis % rank else 1 for i in range(rank)]
        scale, zero = scale.reshape(aligned), zero.reshape(aligned) if zero.numel() > 1 else zero
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    centred = g.call(torch.sub, g.call(torch.Tensor.to, x, torch.float32), zero.float())
    real = g.call(torch.Tensor.to, g.call(torch.mul, centred, scale.float()), scale.dtype)
    if stored is not None and isinstance(real, torch.Tensor):
        g.initializer(stored.removesuffix("_quantized"), real)
    return real


def _centred(g: GraphBuilder, node: Node, at: int, zero_at: int, axis: int) -> Value:
    """Return the integers of input `at` minus their zero point, as real numbers."""
    x = node.input(at)
    if at in node.grids:
        grid = node.grids[at]
        return x if grid is None else g.call(torch.mul, x, 1 / grid.shaped(g.rank(x))[0])
    real = g.call(torch.Tensor.to, x, torch.float32)
    if node.has(zero_at):
        zero = node.constant(zero_at).float()
        if zero.numel() > 1:
            zero = zero.reshape([-1 if i == axis % g.rank(x) else 1 for i in range(g.rank(x))])
        real = g.call(torch.sub, real, zero if zero.numel() > 1 else zero.reshape(()))
    stored = g.initializer_name(x)
    if stored is not None and isinstance(real, torch.Tensor):
        g.initializer(stored.removesuffix("_quantized"), real)
    return real


OPS: dict[str, Builder] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize_linear,
    "com.microsoft.DequantizeLinear": dequantize_linear,
    "com.microsoft.QGemm": qgemm,
    "com.microsoft.QLinearAdd": _binary(torch.add),
    "com.microsoft.QLinearAveragePool": _unary(pool.OPS["AveragePool"]),
    "com.microsoft.QLinearConcat": qlinear_concat,
    "com.microsoft.QLinearGlobalAveragePool": _unary(pool.OPS["GlobalAveragePool"]),
    "com.microsoft.QLinearLeakyRelu": _unary(activation.OPS["LeakyRelu"]),
    "com.microsoft.QLinearMul": _binary(torch.mul),
    "com.microsoft.QLinearSigmoid": _unary(activation.OPS["Sigmoid"]),
    "com.microsoft.QuantizeLinear": quantize_linear,
}
QUANTIZED_OPS = frozenset(OPS)
"""Operators that read quantized values themselves."""
