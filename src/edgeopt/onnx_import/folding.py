"""Constant factors and summands behind a layer, moved into its weights and bias.

Before: add(mul(conv(x), scale), shift)
After: conv(x)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from edgeopt.onnx_import.graph import INTEGERS, RANGE


def fold_bias(root: nn.Module, node: fx.Node) -> None:
    """Move `add(layer(x), b)` with a constant per output channel into the layer, if nothing else uses either."""
    for x, bias in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or not isinstance(bias, fx.Node) or len(x.users) != 1 or node.kwargs:
            continue
        layer, row = _own_layer(root, x), constant_of(root, bias)
        if layer is None or row is None:
            continue
        if not _per_channel(row, layer, x) or row.dtype != layer.weight.dtype:
            continue
        shift = row.detach().reshape(-1)
        layer.bias = nn.Parameter(shift.clone() if layer.bias is None else layer.bias.detach() + shift)
        _pass_on(node, x)
        return


def fold_scale(root: nn.Module, node: fx.Node) -> None:
    """Multiply a constant factor per channel into the layer before it, if nothing else uses either.

    One number for all channels goes into layers of integer weights only, whose scale it is.
    """
    for x, scale in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, fx.Node) or x.op != "call_module" or len(x.users) != 1 or node.kwargs:
            continue
        layer = _own_layer(root, x)
        if layer is None:
            continue
        factor = constant_of(root, scale)
        if INTEGERS in x.meta and isinstance(scale, float):
            factor = torch.full_like(layer.weight[:, 0].reshape(layer.weight.shape[0], -1)[:, 0], scale)
        elif factor is None or not _per_channel(factor, layer, x) or factor.dtype != layer.weight.dtype:
            continue
        with torch.no_grad():
            column = factor.reshape(-1)
            layer.weight.mul_(column.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(column)
        _pass_on(node, x)
        return


def _own_layer(root: nn.Module, x: fx.Node) -> Any:
    """Return the convolution or linear layer that `x` alone calls, else None."""
    if x.op != "call_module":
        return None
    layer = root.get_submodule(str(x.target))
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        return None
    return layer if sum(n.op == "call_module" and n.target == x.target for n in x.graph.nodes) == 1 else None


def _per_channel(value: torch.Tensor, layer: nn.Module, x: fx.Node) -> bool:
    """Whether `value` broadcasts over the result `x` of `layer` with one element per output channel."""
    rank, width = len(x.meta["val"].shape), len(layer.get_parameter("weight"))
    axis = rank - 1 if isinstance(layer, nn.Linear) else 1
    expected = [width if i == axis else 1 for i in range(rank)]
    return [1] * (rank - value.dim()) + list(value.shape) == expected


def _pass_on(node: fx.Node, x: fx.Node) -> None:
    """Let `x` take the place of `node`, whose range is now its own."""
    if RANGE in node.meta:
        x.meta[RANGE] = node.meta[RANGE]
    else:
        x.meta.pop(RANGE, None)
    node.replace_all_uses_with(x)
    node.graph.erase_node(node)


def constant_of(root: nn.Module, node: Any) -> torch.Tensor | None:
    """Return the stored tensor that `node` fetches, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = root
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None
