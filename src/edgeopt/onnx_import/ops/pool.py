"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.windows import Window, pad_argument, window_of

_MAX: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVG: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL_AVG: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_NOT_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)


def max_pool(g: GraphBuilder, node: Node) -> Value:
    """MaxPool → nn.MaxPool{1,2,3}d, after F.pad where the padding is not symmetric or exceeds half the kernel."""
    x = node.input(0)
    window = _window(g, node)
    ceil = bool(node.attr_int("ceil_mode"))
    if node.used(1):
        raise node.unsupported("its Indices output is used")
    padding = window.before
    if not window.symmetric or any(2 * p > k for p, k in zip(window.before, window.kernel, strict=True)):
        after = _stretched(g.shape(x)[2:], window) if ceil else window.after
        x = g.call(F.pad, x, pad_argument(window.before, after), value=_lowest(g, x))
        padding, ceil = (0,) * len(window.kernel), False
    kind = _MAX[len(window.kernel)]
    module = kind(window.kernel, window.stride, padding, dilation=window.dilation, ceil_mode=ceil)
    return g.module(g.layer_name(node), module, x)


def average_pool(g: GraphBuilder, node: Node) -> Value:
    """AveragePool → nn.AvgPool{1,2,3}d; other paddings divide a padded sum by constant counts."""
    x = node.input(0)
    window = _window(g, node)
    include = bool(node.attr_int("count_include_pad"))
    ceil = bool(node.attr_int("ceil_mode"))
    rank = len(window.kernel)
    if any(d != 1 for d in window.dilation):
        raise node.unsupported("it is dilated; PyTorch has no dilated average pooling")
    if window.symmetric and all(2 * p <= k for p, k in zip(window.before, window.kernel, strict=True)):
        module = _AVG[rank](window.kernel, window.stride, window.before, ceil_mode=ceil, count_include_pad=include)
        return g.module(g.layer_name(node), module, x)
    size = g.shape(x)[2:]
    after = _stretched(size, window) if ceil else window.after
    pads = pad_argument(window.before, after)
    pool = _AVG[rank](window.kernel, window.stride)
    y = g.module(g.layer_name(node), pool, g.call(F.pad, x, pads))
    if include and after == window.after:
        return y
    counted = torch.ones(1, 1, *size)
    if include:
        counted = F.pad(counted, window.pad_argument, value=1.0)
        pads = pad_argument((0,) * rank, tuple(a - w for a, w in zip(after, window.after, strict=True)))
    share = pool(F.pad(counted, pads))
    return g.call(torch.mul, y, (1 / share).to(g.dtype(x)))


def lp_pool(g: GraphBuilder, node: Node) -> Value:
    """LpPool → the p-th root of an average pooling of |x|^p, times the kernel's size."""
    x = node.input(0)
    window = _window(g, node)
    p = node.attr_int("p", 2)
    if any(d != 1 for d in window.dilation):
        raise node.unsupported("it is dilated; PyTorch has no dilated average pooling")
    powers = g.call(torch.pow, g.call(torch.abs, x), p)
    after = _stretched(g.shape(x)[2:], window) if node.attr_int("ceil_mode") else window.after
    padded = g.call(F.pad, powers, pad_argument(window.before, after))
    pooled = g.module(g.layer_name(node), _AVG[len(window.kernel)](window.kernel, window.stride), padded)
    return g.call(torch.pow, g.call(torch.mul, pooled, math.prod(window.kernel)), 1 / p)


def global_average_pool(g: GraphBuilder, node: Node) -> Value:
    """GlobalAveragePool → nn.AdaptiveAvgPool{1,2,3}d(1)."""
    x = node.input(0)
    rank = g.rank(x) - 2
    if rank not in _GLOBAL_AVG:
        return g.call(torch.mean, x, list(range(2, g.rank(x))), keepdim=True) if rank > 0 else x
    return g.module(g.layer_name(node), _GLOBAL_AVG[rank](1), x)


def global_max_pool(g: GraphBuilder, node: Node) -> Value:
    """GlobalMaxPool → torch.amax over the spatial axes (adaptive max pooling has no kernel in most formats)."""
    x = node.input(0)
    return g.call(torch.amax, x, list(range(2, g.rank(x))), keepdim=True)


def _window(g: GraphBuilder, node: Node) -> Window:
    kernel = tuple(node.attr_ints("kernel_shape") or ())
    size = g.shape(node.input(0))[2:]
    if len(kernel) not in _MAX or len(kernel) != len(size):
        raise SourceError(
            f"{node.op} at {node.place} has kernel {list(kernel)} for an input of {len(size)} spatial axes"
        )
    return window_of(node, kernel, size)


def _stretched(size: tuple[int, ...], window: Window) -> tuple[int, ...]:
    """Return the padding after each axis with which flooring gives the output size that `ceil_mode` asks for."""
    after = []
    for n, s, e, b, a in zip(size, window.stride, window.extent, window.before, window.after, strict=True):
        steps = -(-(n + b + a - e) // s)
        if steps * s >= n + b:  # a last window that would begin in the padding does not count
            steps -= 1
        after.append(max(steps * s + e - n - b, a if steps * s + e <= n + b + a else 0))
    return tuple(after)


def _lowest(g: GraphBuilder, x: Value) -> float:
    """Return a padding value that no maximum takes; zero where inputs cannot be negative, which quantizes better."""
    if isinstance(x, fx.Node) and x.op == "call_module":
        source = g.root.get_submodule(str(x.target))
        if isinstance(source, _NOT_NEGATIVE):
            return 0.0
    if not g.is_float(x):
        return float(torch.iinfo(g.dtype(x)).min)
    return -math.inf


OPS: dict[str, Builder] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
