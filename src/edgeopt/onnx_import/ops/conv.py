"""Convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.windows import Window, window_of

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CONV_FUNCTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(g: GraphBuilder, node: Node) -> Value:
    """Conv → nn.Conv{1,2,3}d, after F.pad where the padding is not symmetric."""
    x, weight, bias = node.input(0), node.input(1), node.optional(2)
    spatial = _spatial_rank(g, node)
    shape = g.shape(weight)
    window = window_of(node, shape[2:], g.shape(x)[2:])
    groups = _groups(node, shape[0])
    padding = window.before
    if not window.symmetric:
        x, padding = g.call(F.pad, x, window.pad_argument), (0,) * spatial
    if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
        return g.call(_CONV_FUNCTION[spatial], x, weight, bias, window.stride, padding, window.dilation, groups)

    def make() -> nn.Module:
        module = _CONV[spatial](
            shape[1] * groups, shape[0], window.kernel, stride=window.stride, padding=padding,
            dilation=window.dilation, groups=groups, bias=bias is not None, device="meta",
        )  # fmt: skip
        return set_weights(module, node, weight=weight, bias=bias)

    key = (node.op, window.stride, padding, window.dilation, groups)
    return g.shared_module(g.layer_name(node, weight), key, _given(weight, bias), make, x)


def conv_transpose(g: GraphBuilder, node: Node) -> Value:
    """ConvTranspose → nn.ConvTranspose{1,2,3}d, cropped by F.pad where the padding is not symmetric."""
    x, weight = node.input(0), node.constant(1)
    bias = node.constant(2) if node.has(2) else None
    spatial = _spatial_rank(g, node)
    shape = g.shape(weight)
    window = window_of(node, shape[2:], g.shape(x)[2:])
    groups = _groups(node, shape[0])
    extra = tuple(node.attr_ints("output_padding") or [0] * spatial)
    before, after, extra = _transposed_padding(node, window, g.shape(x)[2:], extra)
    symmetric = before == after and min(before, default=0) >= 0
    padding = before if symmetric else (0,) * spatial
    if any(e >= max(s, d) for e, s, d in zip(extra, window.stride, window.dilation, strict=True)):
        raise node.unsupported("its output_padding is not smaller than its stride")

    def make() -> nn.Module:
        module = _TRANSPOSED[spatial](
            shape[0], shape[1] * groups, window.kernel, stride=window.stride, padding=padding,
            output_padding=extra, dilation=window.dilation, groups=groups, bias=bias is not None, device="meta",
        )  # fmt: skip
        return set_weights(module, node, weight=weight, bias=bias)

    key = (node.op, window.stride, padding, extra, window.dilation, groups)
    y = g.shared_module(g.layer_name(node, weight), key, _given(weight, bias), make, x)
    if symmetric:
        return y
    crop = Window(window.kernel, window.stride, window.dilation, tuple(-b for b in before), tuple(-a for a in after))
    return g.call(F.pad, y, crop.pad_argument)


def set_weights(module: nn.Module, node: Node, **tensors: torch.Tensor | None) -> nn.Module:
    """Put stored tensors into a module made on the meta device.

    Raises:
        SourceError: a shape that does not fit.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        expected = getattr(module, name).shape
        if tensor.shape != expected:
            raise SourceError(
                f"{node.op} at {node.place}: {name} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
        if name in module._buffers:
            module.register_buffer(name, tensor.clone(memory_format=torch.contiguous_format))
        else:
            module.register_parameter(name, nn.Parameter(tensor.clone(memory_format=torch.contiguous_format)))
    return module


def _transposed_padding(
    node: Node, window: Window, size: tuple[int, ...], extra: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return crop before, crop after and output padding per axis."""
    wanted = node.attr_ints("output_shape")
    auto = node.attr_text("auto_pad", "NOTSET")
    full = [(n - 1) * s + e + o for n, s, e, o in zip(size, window.stride, window.extent, extra, strict=True)]
    if wanted:
        targets = wanted[-len(size) :]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        targets = [n * s for n, s in zip(size, window.stride, strict=True)]
    else:
        return window.before, window.after, extra
    totals = [f - t for f, t in zip(full, targets, strict=True)]
    grown = tuple(o + max(-t, 0) for o, t in zip(extra, totals, strict=True))
    crops = [max(t, 0) for t in totals]
    small = tuple(c // 2 for c in crops)
    large = tuple(c - c // 2 for c in crops)
    return (small, large, grown) if auto == "SAME_UPPER" else (large, small, grown)


def _spatial_rank(g: GraphBuilder, node: Node) -> int:
    spatial = g.rank(node.input(1)) - 2
    if spatial not in _CONV:
        raise node.unsupported(f"it has {spatial} spatial axes; 1, 2 and 3 can be imported")
    if g.rank(node.input(0)) != spatial + 2:
        raise SourceError(f"{node.op} at {node.place}: input and weight differ in rank; the file is damaged")
    return spatial


def _groups(node: Node, channels: int) -> int:
    groups = node.attr_int("group", 1)
    if groups < 1 or channels % groups:
        raise SourceError(f"{node.op} at {node.place} has group {groups} for {channels} channels; the file is damaged")
    return groups


def _given(*tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return tuple(t for t in tensors if t is not None)


OPS: dict[str, Builder] = {"Conv": conv, "ConvTranspose": conv_transpose}
