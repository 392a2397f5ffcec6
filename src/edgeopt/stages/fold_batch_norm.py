"""Batch normalization folded into the layer before it."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgeopt.stages.layers import Layer, get_constant, is_shared, layers_of
from edgeopt.stages.unfold import rows_of, weight_of_rows

aten = torch.ops.aten


def fold_batch_norm(module: GraphModule) -> int:
    """Fold each batch normalization of fixed statistics into the layer that alone feeds it; returns how many.

    A layer whose weight or bias other nodes share, and a normalization that stands elsewhere, stay as they are.

    Requires the graph module of an exported program. Ensures that the function is kept up to float rounding.

    Before: `batch_norm(conv(x, w, b))`. After: `conv(x, w·k, (b - mean)·k + beta)` with `k = gamma / sqrt(var + eps)`.
    """
    folded = 0
    for layer in layers_of(module):
        follower = next(iter(layer.node.users)) if len(layer.node.users) == 1 else None
        if follower is None or follower.target is not aten.batch_norm.default or not _foldable(layer, follower):
            continue
        _fold(layer, follower)
        folded += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return folded


def _foldable(layer: Layer, norm: Node) -> bool:
    statistics = norm.args[1:5]
    return (
        layer.kind in ("convolution", "transposed", "linear")
        and norm.args[0] is layer.node
        and norm.args[5] is False
        and all(a is None or (isinstance(a, Node) and a.op == "get_attr") for a in statistics)
        and isinstance(statistics[2], Node)
        and isinstance(statistics[3], Node)
        and _channels_fit(layer, norm)
        and not is_shared(layer.module, layer.weight_node)
        and not (layer.bias_node is not None and is_shared(layer.module, layer.bias_node))
        and (layer.bias_node is not None or len(layer.node.args) < 3 or layer.node.args[2] is None)
    )


def _channels_fit(layer: Layer, norm: Node) -> bool:
    """Tell whether the normalized axis 1 is the layer's axis of output channels; of a linear layer that is the last."""
    value = norm.meta["val"]
    return layer.kind != "linear" or value.ndim == 2


def _fold(layer: Layer, norm: Node) -> None:
    module = layer.module
    gamma, beta, mean, variance = (
        get_constant(module, a).double() if isinstance(a, Node) else None for a in norm.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    eps = norm.args[7]
    assert isinstance(eps, float)
    factor = (variance + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma
    rows = rows_of(layer).double()
    rows = rows * factor.reshape(rows.shape[0], rows.shape[1], 1)
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(mean)
    bias = (bias - mean) * factor
    if beta is not None:
        bias = bias + beta
    dtype = layer.weight.dtype
    layer.set_weight(weight_of_rows(layer, rows).to(dtype))
    layer.set_bias(bias.to(dtype))
    norm.replace_all_uses_with(layer.node)
    module.graph.erase_node(norm)
