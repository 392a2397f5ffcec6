"""Normalization."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.conv import set_weights

_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def batch_norm(g: GraphBuilder, node: Node) -> Value:
    """BatchNormalization in inference form → nn.BatchNorm{1,2,3}d."""
    x = node.input(0)
    if node.attr_int("training_mode"):
        raise node.unsupported("it is in training mode; export the model in eval mode")
    eps = node.attr_float("epsilon", 1e-5)
    parts = [node.input(i) for i in range(1, 5)]
    stored = [p for p in parts if isinstance(p, torch.Tensor)]
    if len(stored) < 4 or g.rank(x) not in _BATCH:
        scale, bias, mean, variance = parts
        return g.call(F.batch_norm, x, mean, variance, scale, bias, False, 0.0, eps)
    momentum = 1 - node.attr_float("momentum", 0.9)
    module = _BATCH[g.rank(x)](stored[0].numel(), eps=eps, momentum=momentum, device="meta")
    scale, bias, mean, variance = (p.to(g.dtype(x)) for p in stored)
    set_weights(module, node, weight=scale, bias=bias, running_mean=mean, running_var=variance)
    module.register_buffer("num_batches_tracked", torch.tensor(0))
    return g.module(g.layer_name(node, parts[0]), module, x)


def instance_norm(g: GraphBuilder, node: Node) -> Value:
    """InstanceNormalization → nn.InstanceNorm{1,2,3}d."""
    x, scale, bias = node.input(0), node.constant(1), node.constant(2)
    eps = node.attr_float("epsilon", 1e-5)
    if g.rank(x) not in _INSTANCE:
        return g.call(F.instance_norm, x, None, None, scale, bias, True, 0.1, eps)
    module = _INSTANCE[g.rank(x)](scale.numel(), eps=eps, affine=True, device="meta")
    return g.module(g.layer_name(node, scale), set_weights(module, node, weight=scale, bias=bias), x)


def layer_norm(g: GraphBuilder, node: Node) -> Value:
    """LayerNormalization → nn.LayerNorm over the axes from `axis` on."""
    x = node.input(0)
    if node.used(1) or node.used(2):
        raise node.unsupported("its Mean or InvStdDev output is used")
    shape = _normalized_shape(g, node, x)
    eps = node.attr_float("epsilon", 1e-5)
    weight, bias = node.input(1), node.optional(2)
    if _fits(weight, shape) and (bias is None or _fits(bias, shape)):
        module = nn.LayerNorm(shape, eps=eps, bias=bias is not None, device="meta")
        set_weights(module, node, weight=node.constant(1).reshape(shape), bias=_reshaped(bias, shape))
        return g.module(g.layer_name(node, weight), module, x)
    y = g.call(torch.mul, g.call(F.layer_norm, x, list(shape), None, None, eps), weight)
    return y if bias is None else g.call(torch.add, y, bias)


def rms_norm(g: GraphBuilder, node: Node) -> Value:
    """RMSNormalization → nn.RMSNorm over the axes from `axis` on."""
    x = node.input(0)
    shape = _normalized_shape(g, node, x)
    eps = node.attr_float("epsilon", 1e-5)
    weight = node.input(1)
    if _fits(weight, shape):
        module = nn.RMSNorm(shape, eps=eps, device="meta")
        set_weights(module, node, weight=node.constant(1).reshape(shape))
        return g.module(g.layer_name(node, weight), module, x)
    return g.call(torch.mul, g.call(F.rms_norm, x, list(shape), None, eps), weight)


def group_norm(g: GraphBuilder, node: Node) -> Value:
    """GroupNormalization → nn.GroupNorm (from opset 21: ONNX itself withdrew the form before)."""
    x, scale, bias = node.input(0), node.constant(1), node.constant(2)
    groups, channels = node.attr_int("num_groups"), g.shape(x)[1]
    if groups < 1 or channels % groups:
        raise SourceError(f"{node.op} at {node.place} has {groups} groups for {channels} channels; the file is damaged")
    module = nn.GroupNorm(groups, channels, eps=node.attr_float("epsilon", 1e-5), device="meta")
    return g.module(g.layer_name(node, node.input(1)), set_weights(module, node, weight=scale, bias=bias), x)


def lrn(g: GraphBuilder, node: Node) -> Value:
    """LRN → nn.LocalResponseNorm."""
    size = node.attr_int("size")
    if size % 2 == 0:
        raise node.unsupported("its size is even, which PyTorch centres differently")
    module = nn.LocalResponseNorm(
        size, node.attr_float("alpha", 1e-4), node.attr_float("beta", 0.75), node.attr_float("bias", 1.0)
    )
    return g.module(g.layer_name(node), module, node.input(0))


def lp_normalization(g: GraphBuilder, node: Node) -> Value:
    """LpNormalization → F.normalize."""
    return g.call(F.normalize, node.input(0), p=float(node.attr_int("p", 2)), dim=node.attr_int("axis", -1))


def mean_variance(g: GraphBuilder, node: Node) -> Value:
    """MeanVarianceNormalization → (x − mean) / (standard deviation + 1e-9)."""
    x = node.input(0)
    axes = node.attr_ints("axes") or [0, 2, 3]
    centred = g.call(torch.sub, x, g.call(torch.mean, x, axes, keepdim=True))
    variance = g.call(torch.mean, g.call(torch.mul, centred, centred), axes, keepdim=True)
    return g.call(torch.div, centred, g.call(torch.add, g.call(torch.sqrt, variance), 1e-9))


def _normalized_shape(g: GraphBuilder, node: Node, x: Value) -> tuple[int, ...]:
    axis = node.attr_int("axis", -1)
    if not -g.rank(x) <= axis < g.rank(x):
        raise SourceError(f"{node.op} at {node.place} has axis {axis} for {g.rank(x)} dimensions; the file is damaged")
    return g.shape(x)[axis:]


def _fits(value: Value, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == torch.Size(shape).numel()


def _reshaped(value: Value | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    return value.reshape(shape) if isinstance(value, torch.Tensor) else None


OPS: dict[str, Builder] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": rms_norm,
}
