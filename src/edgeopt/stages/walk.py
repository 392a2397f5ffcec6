"""Runs a graph node by node over all calibration samples, twice at once: in float, and as quantized so far.

A stage that changes layers in the order of execution sees at each of them what the layers before, already changed,
make of the samples, and what they made of them in float. Every node runs once per sample and kind; a value is dropped
after its last use.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import Layer, layers_of

aten = torch.ops.aten
Batches = Callable[[], Iterator[dict[str, np.ndarray]]]
MAX_BYTES = 1 << 30
PADDING_MASK = "attention_mask"
ACTIVATIONS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.silu.default,
    aten.silu_.default,
    aten.gelu.default,
)


@dataclass(frozen=True)
class Arrival:
    """A layer that the walk is about to run.

    Attributes:
        layer: of the module that is being changed; its weight and bias may be set.
        number, total: its place among the layers, from 1.
        inputs: of the layer, one per sample, made by the layers before as they are now, activations quantized where
            the walk quantizes them. Linear layers over the tokens of a text get `[tokens, channels]` without padding,
            which nothing reads and which may be most of a sample.
        float_inputs: the same made by the float network.
        outputs: runs the layer as it is now on an input of the first kind.
        float_outputs: runs the float layer.
        activation: the elementwise function that alone reads the layer's output; the identity where none does.
    """

    layer: Layer
    number: int
    total: int
    inputs: list[torch.Tensor]
    float_inputs: list[torch.Tensor]
    outputs: Callable[[torch.Tensor], torch.Tensor]
    float_outputs: Callable[[torch.Tensor], torch.Tensor]
    activation: Callable[[torch.Tensor], torch.Tensor]


def walk(
    module: GraphModule,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    prepared: GraphModule | None = None,
    *,
    max_samples: int = 100,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Arrival]:
    """Yield every layer of `module` that has a weight of its own, before it runs.

    What the consumer sets on the layer counts from the next step on.

    Args:
        module: whose layers may be changed between two steps.
        batches: gives the samples; each is one batch of the program's fixed size.
        inputs: of the program.
        prepared: the same graph with observers that have seen the samples: activations are quantized with their
            ranges. Activations stay in float where None.
        max_samples: taken at most.
        max_bytes: of activations kept at any time; fewer samples are taken where they would need more.
    """
    graph_module = copy.deepcopy(module) if prepared is None else prepared
    nodes = list(graph_module.graph.nodes)
    layers = {layer.node.name: layer for layer in layers_of(module)}
    last_use = last_uses(nodes)
    count = min(max_samples, max(1, max_bytes // max(1, 2 * peak_bytes(nodes, last_use))))
    samples = first_samples(batches, inputs, count)
    padding = [sample.get(PADDING_MASK) for sample in samples]
    varying: dict[Node, tuple[list[Any], list[Any]]] = {}
    constant: dict[Node, Any] = {}
    number = 0
    placeholders = iter(inputs)
    for node in nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            name = next(placeholders).name
            values = [sample[name] for sample in samples]
            varying[node] = (values, list(values))
        elif node.op == "get_attr":
            constant[node] = attribute_of(graph_module, str(node.target))
        elif not any(a in varying for a in node.all_input_nodes):
            if node.users:
                with torch.no_grad():
                    constant[node] = call_node(graph_module, node, constant.__getitem__)
        elif node.name in layers:
            layer = layers[node.name]
            number += 1

            def run(value: torch.Tensor, layer: Layer = layer, node: Node = node) -> torch.Tensor:
                with torch.no_grad():
                    return run_layer(layer, node, value, layer.weight, layer.bias, constant)

            def run_float(value: torch.Tensor, layer: Layer = layer, node: Node = node) -> torch.Tensor:
                weight, bias = _float_constants(layer, node, constant)
                with torch.no_grad():
                    return run_layer(layer, node, value, weight, bias, constant)

            source = node.args[1 if layer.kind == "embedding" else 0]
            assert isinstance(source, Node)
            now, in_float = varying[source]
            shown = [_without_padding(layer, values, padding) for values in (now, in_float)]
            yield Arrival(layer, number, len(layers), *shown, run, run_float, _activation(graph_module, node))
            varying[node] = ([run(v) for v in now], [run_float(v) for v in in_float])
        else:
            with torch.no_grad():
                varying[node] = _both(graph_module, node, constant, varying, len(samples))
        for spent in last_use.get(node, ()):
            varying.pop(spent, None)


def _without_padding(layer: Layer, values: list[torch.Tensor], masks: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return the values at tokens whose mask is not zero; all where the layer's input has no axis of tokens."""
    return [
        value
        if layer.kind != "linear" or mask is None or value.ndim != 3 or value.shape[:2] != mask.shape or not mask.any()
        else value[mask != 0]
        for value, mask in zip(values, masks, strict=True)
    ]


def _both(
    module: GraphModule,
    node: Node,
    constant: dict[Node, Any],
    varying: dict[Node, tuple[list[Any], list[Any]]],
    samples: int,
) -> tuple[list[Any], list[Any]]:
    observer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if observer is not None and hasattr(observer, "calculate_qparams"):
        assert isinstance(node.args[0], Node)
        now, in_float = varying[node.args[0]]
        return quantized(observer, now), in_float
    both: list[list[Any]] = []
    for kind in (0, 1):
        results = []
        for i in range(samples):
            here = {n: varying[n][kind][i] if n in varying else constant[n] for n in node.all_input_nodes}
            results.append(call_node(module, node, here.__getitem__))
        both.append(results)
    return both[0], both[1]


def quantized(observer: torch.nn.Module, values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return activations as quantized with what an observer has seen; integers as they are."""
    if not values[0].is_floating_point():
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own: an observer that saw nothing
        scale, zero_point = observer.calculate_qparams()  # type: ignore[operator]
    low, high = int(observer.quant_min), int(observer.quant_max)  # type: ignore[arg-type]
    s, z = float(scale), int(zero_point)
    return [torch.fake_quantize_per_tensor_affine(v, s, z, low, high) for v in values]


def call_node(module: GraphModule, node: Node, value_of: Callable[[Node], Any]) -> Any:
    """Run one node on values; a weight's observer passes on what it gets."""
    arguments = map_arg(node.args, value_of)
    keywords = map_arg(node.kwargs, value_of)
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if hasattr(called, "calculate_qparams"):
            return arguments[0]  # the weight is brought to its grid by whoever walks
        return called(*arguments, **keywords)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def run_layer(
    layer: Layer,
    node: Node,
    value: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    constant: dict[Node, Any],
) -> torch.Tensor:
    """Run a layer's node on another input, weight and bias."""
    assert callable(node.target)
    if layer.kind == "embedding":
        arguments = (weight, value, *map_arg(node.args[2:], constant.__getitem__))
    else:
        arguments = (value, weight, bias, *map_arg(node.args[3:], constant.__getitem__))
    result: torch.Tensor = node.target(*arguments, **node.kwargs)
    return result


def _activation(module: GraphModule, node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    reader = node
    while len(reader.users) == 1 and (reader is node or reader.op == "call_module"):
        reader = next(iter(reader.users))
    if reader.target not in ACTIVATIONS or reader.all_input_nodes[1:]:
        return lambda value: value
    # A copy, since some work in place.
    return lambda value: torch.as_tensor(call_node(module, reader, lambda _: value.clone()))


def _float_constants(layer: Layer, node: Node, constant: dict[Node, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = node.args[0 if layer.kind == "embedding" else 1]
    bias = node.args[2] if layer.kind != "embedding" and len(node.args) > 2 else None
    assert isinstance(weight, Node)
    return constant[weight], constant[bias] if isinstance(bias, Node) else None


def attribute_of(module: GraphModule, target: str) -> Any:
    """Return what a `get_attr` node's dotted name stands for."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def first_samples(batches: Batches, inputs: tuple[TensorSpec, ...], count: int) -> list[dict[str, torch.Tensor]]:
    """Return the first samples as tensors, at most `count`."""
    samples: list[dict[str, torch.Tensor]] = []
    for batch in batches():
        samples.append({s.name: torch.from_numpy(np.ascontiguousarray(batch[s.name])) for s in inputs})
        if len(samples) == count:
            break
    return samples


def last_uses(nodes: list[Node]) -> dict[Node, list[Node]]:
    """Return for each node the values that nothing after it reads."""
    last: dict[Node, Node] = {}
    for node in nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    spent: dict[Node, list[Node]] = {}
    for value, node in last.items():
        spent.setdefault(node, []).append(value)
    return spent


def peak_bytes(nodes: list[Node], last_use: dict[Node, list[Node]]) -> int:
    """Return the largest sum of values alive at one time for one sample; views count as copies.

    Weights and what follows from them alone count as nothing.
    """
    alive = peak = 0
    sizes: dict[Node, int] = {}
    varying: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(a in varying for a in node.all_input_nodes):
            varying.add(node)
        if node in varying and node.op != "output":
            source = node
            while "val" not in source.meta and source.all_input_nodes:
                source = source.all_input_nodes[0]  # an observer: as large as what it observes
            flat, _ = torch.utils._pytree.tree_flatten(source.meta.get("val"))
            sizes[node] = sum(t.numel() * t.element_size() for t in flat if isinstance(t, torch.Tensor))
            alive += sizes[node]
            peak = max(peak, alive)
        alive -= sum(sizes.get(spent, 0) for spent in last_use.get(node, ()))
    return peak
