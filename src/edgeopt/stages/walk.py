"""Runs a graph node by node over all calibration samples, twice at once: in float, and as quantized so far.

A stage that changes layers in the order of execution sees at each of them what the layers before, already changed,
make of the samples, and what they made of them in float. Every node runs once per sample and kind; a value is dropped
after its last use.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
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
MAX_SAMPLES = 200
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
    max_samples: int = MAX_SAMPLES,
    max_bytes: int = MAX_BYTES,
) -> Iterator[Arrival]:
    """Yield every layer of `module` that has a weight of its own, before it runs.

    What the consumer sets on the layer counts from the next step on. The first values of an image network are its
    largest, so the walk sets out with as many samples as they allow; the others join where there is room for them.

    Args:
        module: whose layers may be changed between two steps.
        batches: gives the samples; each is one batch of the program's fixed size.
        inputs: of the program.
        prepared: the same graph with observers that have seen the samples: activations are quantized with their
            ranges. Activations stay in float where None.
        max_samples: taken at most.
        max_bytes: of activations kept at any time.
    """
    graph_module = copy.deepcopy(module) if prepared is None else prepared
    layers = {layer.node.name: layer for layer in layers_of(module)}
    nodes = list(graph_module.graph.nodes)
    last_use = last_uses(nodes)
    room = [max(1, max_bytes // max(1, 2 * peak)) for peak in peaks_from(nodes, last_use)]
    samples = first_samples(batches, inputs, min(max_samples, max(room)))
    padding = [sample.get(PADDING_MASK) for sample in samples]
    network = _Network(graph_module, layers)
    here: list[_Values] = []
    number = 0
    for index, node in enumerate(nodes):
        if node.op == "output":
            return
        while len(here) < min(len(samples), room[index]):
            joining = _entered(nodes, inputs, samples[len(here)])
            for earlier in nodes[:index]:
                network.run(earlier, [joining])
                _forget(joining, last_use.get(earlier, ()))
            here.append(joining)
        layer = layers.get(node.name)
        if layer is not None and network.varies(node):
            number += 1
            source = _operand(layer, node)
            now, in_float = (
                _without_padding(layer, [values[source][side] for values in here], padding) for side in (0, 1)
            )
            outputs, float_outputs = (functools.partial(run, node) for run in (network.now, network.in_float))
            activation = _activation(graph_module, node)
            yield Arrival(layer, number, len(layers), now, in_float, outputs, float_outputs, activation)
        network.run(node, here)
        for values in here:
            _forget(values, last_use.get(node, ()))


_Values = dict[Node, tuple[Any, Any]]
"""What a sample's nodes gave: as quantized so far, and in float."""


class _Network:
    """Runs a graph's nodes on samples, each as quantized so far and in float."""

    def __init__(self, module: GraphModule, layers: dict[str, Layer]) -> None:
        self._module = module
        self._layers = layers
        self._constant: dict[Node, Any] = {}
        self._varying: set[Node] = set()
        for node in module.graph.nodes:
            if node.op == "placeholder" or any(n in self._varying for n in node.all_input_nodes):
                self._varying.add(node)

    def varies(self, node: Node) -> bool:
        """Tell whether a node's value depends on the sample."""
        return node in self._varying

    def now(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """Run a layer's node on its input, with weight and bias as they are now."""
        layer = self._layers[node.name]
        with torch.no_grad():
            return run_layer(layer, node, value, layer.weight, layer.bias, self._constant)

    def in_float(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """Run a layer's node on its input, with the float weight and bias."""
        weight, bias = _float_constants(self._layers[node.name], node, self._constant)
        with torch.no_grad():
            return run_layer(self._layers[node.name], node, value, weight, bias, self._constant)

    def run(self, node: Node, samples: Sequence[_Values]) -> None:
        """Add the node's values to those of the samples; a constant is computed once."""
        if node not in self._varying:
            if node not in self._constant and (node.op == "get_attr" or node.users):
                self._constant[node] = self._computed(node)
        elif node.op != "placeholder":
            for values in samples:
                values[node] = self._both(node, values)

    def _computed(self, node: Node) -> Any:
        if node.op == "get_attr":
            return attribute_of(self._module, str(node.target))
        with torch.no_grad():
            return call_node(self._module, node, self._constant.__getitem__)

    def _both(self, node: Node, values: _Values) -> tuple[Any, Any]:
        layer = self._layers.get(node.name)
        if layer is not None:
            now, in_float = values[_operand(layer, node)]
            return self.now(node, now), self.in_float(node, in_float)
        observer = self._module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if observer is not None and hasattr(observer, "calculate_qparams"):
            now, in_float = values[_operand(None, node)]
            return quantized(observer, [now])[0], in_float
        with torch.no_grad():
            now, in_float = (call_node(self._module, node, self._reader(values, side)) for side in (0, 1))
        return now, in_float

    def _reader(self, values: _Values, side: int) -> Callable[[Node], Any]:
        return lambda node: values[node][side] if node in values else self._constant[node]


def _entered(nodes: Sequence[Node], inputs: Sequence[TensorSpec], sample: dict[str, torch.Tensor]) -> _Values:
    """Return the values that a sample begins with."""
    placeholders = [n for n in nodes if n.op == "placeholder"]
    return {node: (sample[s.name], sample[s.name]) for node, s in zip(placeholders, inputs, strict=True)}


def _forget(values: _Values, spent: Sequence[Node]) -> None:
    for node in spent:
        values.pop(node, None)


def _operand(layer: Layer | None, node: Node) -> Node:
    """Return the node that makes what a layer, or an observer, reads."""
    source = node.args[1 if layer is not None and layer.kind == "embedding" else 0]
    assert isinstance(source, Node)
    return source


def _without_padding(layer: Layer, values: list[torch.Tensor], masks: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return the values of the first samples at tokens whose mask is not zero.

    All where the layer's input has no axis of tokens.
    """
    return [
        value
        if layer.kind != "linear" or mask is None or value.ndim != 3 or value.shape[:2] != mask.shape or not mask.any()
        else value[mask != 0]
        for value, mask in zip(values, masks, strict=False)
    ]


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
    """Return the largest sum of values alive at one time for one sample; see `peaks_from`."""
    return peaks_from(nodes, last_use)[0]


def peaks_from(nodes: list[Node], last_use: dict[Node, list[Node]]) -> list[int]:
    """Return for each node the largest sum of values alive at one time from it on, for one sample.

    Views count as copies, weights and what follows from them alone as nothing.
    """
    alive = 0
    sizes: dict[Node, int] = {}
    varying: set[Node] = set()
    peaks: list[int] = []
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
        peaks.append(alive)
        alive -= sum(sizes.get(spent, 0) for spent in last_use.get(node, ()))
    for index in range(len(peaks) - 2, -1, -1):
        peaks[index] = max(peaks[index], peaks[index + 1])
    return peaks
