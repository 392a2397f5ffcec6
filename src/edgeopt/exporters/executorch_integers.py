"""Rewrites of a program into what ExecuTorch's pip runtime computes on stored integers, weights bit for bit.

XNNPACK multiplies int8 weights with dynamically quantized activations, and with float ones. It has no quantized
embeddings, so rows are looked up as integers and multiplied by their scales.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize/dequantize operators
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeopt.exporters.coreml_executorch_weights import Integers, LayerWeight, add_constant, constant

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
SMALLEST_SCALE = torch.finfo(torch.float32).eps


def computes_dynamically(weight: LayerWeight, *, convolutions: bool = True) -> bool:
    """Whether XNNPACK multiplies a weight with dynamically quantized activations: linear layers and 1×1 convolutions.

    ExecuTorch 1.4 gives wrong numbers, or fails to execute, for a dynamically quantized strided convolution:
    EfficientNet-Lite0's first layer alone took the whole net from 19.8 dB in simulation to −3.4 dB, RegNetX-200MF's
    1×1 shortcuts took it from 38.7 to 7.7 dB.
    """
    if weight.kind == "linear":
        return all(layer.target is aten.linear.default for layer in weight.layers)
    return (
        convolutions
        and weight.kind == "convolution"
        and weight.value.ndim == 4
        and all(_is_pointwise(n) for n in weight.layers)
    )


def _is_pointwise(node: Node) -> bool:
    weight = node.args[1]
    assert isinstance(weight, Node)
    given: dict[str, Any] = dict(zip(CONVOLUTION, node.args, strict=False))
    plain = set(given.get("stride", (1,))) == {1} and set(given.get("padding", (0,))) == {0}
    plain = plain and given.get("groups", 1) == 1
    return bool(node.target is aten.conv2d.default and plain and set(weight.meta["val"].shape[2:]) == {1})


def quantize_dynamically(module: GraphModule, weight: LayerWeight, integers: Integers) -> None:
    """Let a weight's layers multiply its integers with activations that are ranged at each call.

    Before: `linear(x, w, b)`. After: `linear(dequantize(quantize(x, choose(x))), dequantize(integers, scales), b)`.
    """
    made = _dequantized(module, weight, integers)
    for layer in weight.layers:
        source = layer.args[0]
        assert isinstance(source, Node)
        layer.args = (_ranged(module, source), made, *layer.args[2:])
    _drop(module, weight)


def store_linear(module: GraphModule, weight: LayerWeight, integers: Integers) -> None:
    """Let linear layers multiply a weight's integers with float activations.

    The bias is added behind the layer: the converter refuses one beside a quantized weight and a float input.

    Before: `linear(x, w, b)`. After: `linear(x, dequantize(integers, scales)) + b`.
    """
    made = _dequantized(module, weight, integers)
    for layer in weight.layers:
        bias = layer.args[2] if len(layer.args) > 2 else None
        layer.args = (layer.args[0], made)
        if isinstance(bias, Node):
            with module.graph.inserting_after(layer):
                total = module.graph.call_function(aten.add.Tensor, (layer, bias))
            layer.replace_all_uses_with(total)
            total.args = (layer, bias)
            total.meta = dict(layer.meta)
    _drop(module, weight)


def store_embedding(module: GraphModule, weight: LayerWeight, integers: Integers) -> None:
    """Let an embedding look up integers and their scales.

    Before: `embedding(w, ids)`. After: `to_float(embedding(integers, ids)) * embedding(scales, ids)`.
    """
    before = weight.layers[0]
    values = add_constant(module, before, integers.values, "integers")
    scales = add_constant(module, before, integers.scale, "scales")
    for layer in weight.layers:
        _look_up(module, layer, values, scales)
    _drop(module, weight)


def store_embeddings_of_graph(module: GraphModule) -> None:
    """Rewrite the embeddings of a quantized graph, whose tables are dequantized as a whole.

    Before: `embedding(dequantize(integers, scales), ids)`. After: as `store_embedding`.
    """
    for node in list(module.graph.nodes):
        table = node.args[0] if node.target is aten.embedding.default else None
        if not isinstance(table, Node) or table.target is not quantized.dequantize_per_channel.default:
            continue
        values, scale = table.args[0], table.args[1]
        assert isinstance(values, Node) and isinstance(scale, Node)
        if table.args[3] == 0 and values.op == "get_attr" and scale.op == "get_attr":
            column = constant(module, scale).float().reshape(-1, 1)
            _look_up(module, node, values, add_constant(module, node, column, "scales"))


def _look_up(module: GraphModule, layer: Node, values: Node, scales: Node) -> None:
    indices = layer.args[1]
    with module.graph.inserting_before(layer):
        rows = module.graph.call_function(aten.embedding.default, (values, indices))
        floats = module.graph.call_function(aten.to.dtype, (rows, torch.float32))
        factors = module.graph.call_function(aten.embedding.default, (scales, indices))
        result = module.graph.call_function(aten.mul.Tensor, (floats, factors))
    result.meta = dict(layer.meta)
    layer.replace_all_uses_with(result)
    module.graph.erase_node(layer)


def _dequantized(module: GraphModule, weight: LayerWeight, integers: Integers) -> Node:
    before = weight.layers[0]
    scale: Tensor = integers.scale.reshape(-1)
    values = add_constant(module, before, integers.values, "integers")
    scales = add_constant(module, before, scale, "scales")
    zeros = add_constant(module, before, torch.zeros(len(scale), dtype=torch.int64), "zeros")
    with module.graph.inserting_before(before):
        return module.graph.call_function(
            quantized.dequantize_per_channel.default, (values, scales, zeros, weight.axis, -127, 127, torch.int8)
        )


def _ranged(module: GraphModule, source: Node) -> Node:
    """Return the source quantized and dequantized with the range of each call; once for all layers that read it."""
    for user in source.users:
        if user.target is quantized.quantize_per_tensor.tensor:
            return next(iter(user.users))
    bounds = (-128, 127)
    with module.graph.inserting_after(source):
        chosen = module.graph.call_function(
            quantized.choose_qparams.tensor, (source, *bounds, SMALLEST_SCALE, torch.int8)
        )
    with module.graph.inserting_after(chosen):
        scale = module.graph.call_function(getitem, (chosen, 0))
    with module.graph.inserting_after(scale):
        zero = module.graph.call_function(getitem, (chosen, 1))
    with module.graph.inserting_after(zero):
        stored = module.graph.call_function(
            quantized.quantize_per_tensor.tensor, (source, scale, zero, *bounds, torch.int8)
        )
    with module.graph.inserting_after(stored):
        return module.graph.call_function(
            quantized.dequantize_per_tensor.tensor, (stored, scale, zero, *bounds, torch.int8)
        )


def _drop(module: GraphModule, weight: LayerWeight) -> None:
    if not weight.node.users:
        module.graph.erase_node(weight.node)
