"""Activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _plain(make: Callable[[], nn.Module]) -> Builder:
    """Return the builder of an activation without attributes."""
    return lambda g, node: g.module(g.layer_name(node), make(), node.input(0))


def clip(g: GraphBuilder, node: Node) -> Value:
    """Clip → nn.ReLU6, nn.ReLU or nn.Hardtanh; with one bound, of integers or with computed bounds → clamp."""
    x = node.input(0)
    low, high = (_bound(g, node, index, name) for index, name in ((1, "min"), (2, "max")))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        y = x if low is None else g.call(torch.maximum, x, _like(g, low, x))
        return y if high is None else g.call(torch.minimum, y, _like(g, high, x))
    if low is None and high is None:
        return g.call(torch.clone, x)
    if g.is_float(x) and low == 0 and (high is None or high == 6):
        return g.module(g.layer_name(node), nn.ReLU() if high is None else nn.ReLU6(), x)
    if g.is_float(x) and low is not None and high is not None and low < high:
        return g.module(g.layer_name(node), nn.Hardtanh(low, high), x)
    return g.call(torch.clamp, x, min=low, max=high)


def _bound(g: GraphBuilder, node: Node, index: int, name: str) -> float | fx.Node | None:
    value = node.optional(index)
    if isinstance(value, fx.Node):
        return value
    number = node.attributes.get(name) if value is None else value.item()
    if number is None:
        return None
    if not g.is_float(node.input(0)):
        return int(number)
    limit = torch.finfo(g.dtype(node.input(0))).max
    unbounded = number <= -limit if name == "min" else number >= limit
    return None if unbounded else float(number)


def _like(g: GraphBuilder, bound: float | fx.Node, x: Value) -> Value:
    return bound if isinstance(bound, fx.Node) else torch.tensor(bound, dtype=g.dtype(x))


def leaky_relu(g: GraphBuilder, node: Node) -> Value:
    """LeakyRelu → nn.LeakyReLU."""
    return g.module(g.layer_name(node), nn.LeakyReLU(node.attr_float("alpha", 0.01)), node.input(0))


def prelu(g: GraphBuilder, node: Node) -> Value:
    """PRelu with one slope or one per channel → nn.PReLU; any other → where."""
    x, slope = node.input(0), node.input(1)
    rank = g.rank(x)
    if isinstance(slope, torch.Tensor) and rank >= 2:
        aligned = (1,) * (rank - slope.dim()) + tuple(slope.shape)
        channels = g.shape(x)[1]
        if slope.numel() == 1 or (slope.numel() == channels and len(aligned) == rank and aligned[1] == channels):
            module = nn.PReLU(slope.numel(), device="meta")
            module.weight = nn.Parameter(slope.reshape(-1).clone())
            return g.module(g.layer_name(node, slope), module, x)
    return g.call(torch.where, g.call(torch.lt, x, 0), g.call(torch.mul, x, slope), x)


def elu(g: GraphBuilder, node: Node) -> Value:
    """Elu → nn.ELU."""
    return g.module(g.layer_name(node), nn.ELU(node.attr_float("alpha", 1.0)), node.input(0))


def selu(g: GraphBuilder, node: Node) -> Value:
    """Selu with the paper's constants → nn.SELU; with others → gamma × ELU(alpha)."""
    alpha, gamma = node.attr_float("alpha", _SELU[0]), node.attr_float("gamma", _SELU[1])
    if math.isclose(alpha, _SELU[0], rel_tol=1e-5) and math.isclose(gamma, _SELU[1], rel_tol=1e-5):
        return g.module(g.layer_name(node), nn.SELU(), node.input(0))
    return g.call(torch.mul, g.module(g.layer_name(node), nn.ELU(alpha), node.input(0)), gamma)


def celu(g: GraphBuilder, node: Node) -> Value:
    """Celu → nn.CELU."""
    return g.module(g.layer_name(node), nn.CELU(node.attr_float("alpha", 1.0)), node.input(0))


def hard_sigmoid(g: GraphBuilder, node: Node) -> Value:
    """HardSigmoid with PyTorch's slope 1/6 → nn.Hardsigmoid; with another → clamp(alpha x + beta)."""
    alpha, beta = node.attr_float("alpha", 0.2), node.attr_float("beta", 0.5)
    x = node.input(0)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5:
        return g.module(g.layer_name(node), nn.Hardsigmoid(), x)
    line = g.call(torch.add, g.call(torch.mul, x, alpha), beta)
    return g.module(g.layer_name(node), nn.Hardtanh(0.0, 1.0), line)


def gelu(g: GraphBuilder, node: Node) -> Value:
    """Gelu → nn.GELU, exact or by tanh."""
    return g.module(g.layer_name(node), nn.GELU(approximate=node.attr_text("approximate", "none")), node.input(0))


def swish(g: GraphBuilder, node: Node) -> Value:
    """Swish → nn.SiLU; with a slope → x × sigmoid(alpha x)."""
    x, alpha = node.input(0), node.attr_float("alpha", 1.0)
    if alpha == 1:
        return g.module(g.layer_name(node), nn.SiLU(), x)
    return g.call(torch.mul, x, g.module(g.layer_name(node), nn.Sigmoid(), g.call(torch.mul, x, alpha)))


def thresholded_relu(g: GraphBuilder, node: Node) -> Value:
    """ThresholdedRelu → nn.Threshold."""
    return g.module(g.layer_name(node), nn.Threshold(node.attr_float("alpha", 1.0), 0.0), node.input(0))


def shrink(g: GraphBuilder, node: Node) -> Value:
    """Shrink → nn.Softshrink or nn.Hardshrink."""
    lambd, bias = node.attr_float("lambd", 0.5), node.attr_float("bias", 0.0)
    if bias not in (0.0, lambd):
        raise node.unsupported("its bias is neither 0 nor lambd")
    return g.module(g.layer_name(node), nn.Softshrink(lambd) if bias else nn.Hardshrink(lambd), node.input(0))


def _along_axis(kind: Callable[[int], nn.Module]) -> Builder:
    """Return the builder of a softmax: before opset 13 it normalizes over all axes from `axis` on."""

    def build(g: GraphBuilder, node: Node) -> Value:
        x = node.input(0)
        if node.opset >= 13:
            return g.module(g.layer_name(node), kind(node.attr_int("axis", -1)), x)
        axis = node.attr_int("axis", 1) % max(g.rank(x), 1)
        if axis == g.rank(x) - 1:
            return g.module(g.layer_name(node), kind(-1), x)
        y = g.module(g.layer_name(node), kind(-1), g.call(torch.flatten, x, axis))
        return g.call(torch.reshape, y, g.shape(x))

    return build


def hardmax(g: GraphBuilder, node: Node) -> Value:
    """Hardmax → one-hot of the first maximum."""
    x, axis = node.input(0), node.attr_int("axis", -1 if node.opset >= 13 else 1)
    if node.opset < 13 and axis % g.rank(x) != g.rank(x) - 1:
        raise node.unsupported("it spans several axes; export with opset 13 or later")
    hot = g.call(F.one_hot, g.call(torch.argmax, x, axis), g.shape(x)[axis])
    return g.call(torch.Tensor.to, g.call(torch.movedim, hot, -1, axis), g.dtype(x))


OPS: dict[str, Builder] = {
    "Celu": celu,
    "Clip": clip,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _plain(nn.Hardswish),
    "Hardmax": hardmax,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": _along_axis(lambda axis: nn.LogSoftmax(axis)),
    "Mish": _plain(nn.Mish),
    "PRelu": prelu,
    "Relu": _plain(nn.ReLU),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": _plain(nn.Sigmoid),
    "Softmax": _along_axis(lambda axis: nn.Softmax(axis)),
    "Softplus": _plain(nn.Softplus),
    "Softsign": _plain(nn.Softsign),
    "Swish": swish,
    "Tanh": _plain(nn.Tanh),
    "ThresholdedRelu": thresholded_relu,
}
