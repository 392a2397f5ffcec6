"""Which range each tensor of a float TFLite model has, from the ranges of the exported program's nodes.

Converters keep no names, so tensors are found by their values: the same samples run through both, and a tensor that
holds the same numbers as a node, in whatever order, is that node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch.fx import GraphModule, Node

from edgeopt.exporters.litert_graph import FLOAT32, INT8, INT32, INT64, LitertGraph, Operator

Range = tuple[float, float]

QUANTILES = np.linspace(0, 1, 17)
TOLERANCE = 2e-3  # of a tensor's standard deviation; kernels sum in other orders than PyTorch
# What moves values without changing them, or picks some: integer kernels keep their input's scale.
EXACT_MOVERS = frozenset(
    {
        "RESHAPE", "TRANSPOSE", "PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "SQUEEZE", "EXPAND_DIMS", "BROADCAST_TO",
        "GATHER_ND", "UNPACK", "SPACE_TO_DEPTH", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR",
    }
)  # fmt: skip
# Of the operators whose bias is stored in 32 bits: the weight's axis of output channels.
CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": -1, "FULLY_CONNECTED": 0}
MOST_BIAS_STEPS = 2.0**30
MOST_ROOM = 16.0
MOVERS = EXACT_MOVERS | {"AVERAGE_POOL_2D", "RESIZE_BILINEAR"}


@dataclass
class Placement:
    """What becomes of each tensor of the float model.

    Attributes:
        ranges: of the tensors that are quantized, by index.
        names: node that a tensor was found to be, by index.
        estimated: tensors between quantized ones that no node matches; their range is that of the samples seen.
    """

    ranges: dict[int, Range] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    estimated: list[int] = field(default_factory=list)


@dataclass
class _Seen:
    """What the samples told of a tensor: one fingerprint per sample, smallest and largest value."""

    size: int
    prints: list[np.ndarray] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0

    def add(self, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)].astype(np.float64)
        ordered = np.sort(finite, axis=None) if finite.size else np.zeros(1)
        picked = ordered[np.round(QUANTILES * (ordered.size - 1)).astype(int)]
        self.prints.append(np.array([*picked, ordered.mean(), ordered.std()]))
        self.low, self.high = min(self.low, float(ordered[0])), max(self.high, float(ordered[-1]))

    def is_same(self, other: _Seen) -> bool:
        if self.size != other.size:
            return False
        pairs = zip(self.prints, other.prints, strict=True)
        return all(np.abs(a - b).max() <= TOLERANCE * a[-1] + 1e-6 * np.abs(a).max() for a, b in pairs)


def place(
    graph: LitertGraph,
    content: bytes,
    module: GraphModule,
    ranges: dict[str, Range],
    kept_float: frozenset[str],
    samples: Iterable[tuple[tuple[torch.Tensor, ...], dict[str, np.ndarray]]],
) -> Placement:
    """Return the ranges of a float model's tensors.

    Args:
        graph: of the float model.
        content: the same model as a file's bytes.
        module: the float program's graph module.
        ranges: of the program's nodes that are quantized, by name.
        kept_float: nodes whose operators stay in float although their inputs and outputs have ranges.
        samples: inputs of the program in order, and those of the model's signature by name; one or two suffice.
    """
    nodes: dict[str, _Seen] = {}
    tensors: dict[int, _Seen] = {}
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = interpreter.get_signature_runner()
    for inputs, fed in samples:
        with torch.no_grad():
            _Watch(module, nodes).run(*inputs)
        runner(**fed)
        for index in range(len(graph.tensors)):
            if graph.is_activation(index):
                values = interpreter.get_tensor(index)
                tensors.setdefault(index, _Seen(values.size)).add(values)
    placed = Placement()
    for index, seen in tensors.items():
        same = [name for name, other in nodes.items() if seen.is_same(other)]
        ranged = [name for name in same if name in ranges]
        if same:
            placed.names[index] = next((name for name in same if name in kept_float), (ranged or same)[0])
        if ranged:
            placed.ranges[index] = ranges[ranged[0]]
    _fill_gaps(graph, placed, tensors)
    return placed


def operators_in_float(graph: LitertGraph, placed: Placement, kept_float: frozenset[str]) -> list[Operator]:
    """Return the operators on floats that are not quantized: some input or output of theirs has no range."""
    left = []
    for op in graph.operators:
        touched = [i for i in (*op.inputs, *op.outputs) if graph.is_activation(i)]
        named = any(placed.names.get(i) in kept_float for i in op.outputs)
        if touched and (named or any(i not in placed.ranges for i in touched)):
            left.append(op)
    return left


def _fill_gaps(graph: LitertGraph, placed: Placement, tensors: dict[int, _Seen]) -> None:
    """Give ranges to tensors that no node matches but that lie between quantized ones.

    A converter splits a node in two, as hard-sigmoid into a clamp and a product, or moves values a node did not.
    """
    readers: dict[int, list[Operator]] = {}
    for op in graph.operators:
        for index in op.inputs:
            readers.setdefault(index, []).append(op)
    for op in reversed(graph.operators):
        source = op.inputs[0] if op.inputs else -1
        moved = graph.is_activation(source) and op.kind in EXACT_MOVERS and op.outputs[0] in placed.ranges
        if moved and source not in placed.ranges and len(readers[source]) == 1:
            placed.ranges[source] = placed.ranges[op.outputs[0]]  # so that integers are moved, not floats
    for op in graph.operators:
        sources = [i for i in op.inputs if graph.is_activation(i)]
        for index in op.outputs:
            if not graph.is_activation(index) or index in placed.names or not sources:
                continue
            if any(i not in placed.ranges for i in sources):
                continue
            if op.kind in MOVERS:
                placed.ranges[index] = placed.ranges[sources[0]]
            elif readers.get(index) and all(_reaches_range(r, graph, placed, readers) for r in readers[index]):
                placed.ranges[index] = (tensors[index].low, tensors[index].high)
                placed.estimated.append(index)


def _reaches_range(op: Operator, graph: LitertGraph, placed: Placement, readers: dict[int, list[Operator]]) -> bool:
    """Whether all that an operator writes has a range, at once or behind movers."""
    for index in op.outputs:
        if index in placed.ranges:
            continue
        if op.kind not in MOVERS or index in placed.names or not readers.get(index):
            return False
        if not all(_reaches_range(reader, graph, placed, readers) for reader in readers[index]):
            return False
    return True


class _Watch(torch.fx.Interpreter):
    """Runs a graph module and notes what each node computes."""

    def __init__(self, module: GraphModule, nodes: dict[str, _Seen]) -> None:
        super().__init__(module)
        self.nodes = nodes

    def run_node(self, n: Node) -> object:
        """Run one node and take its fingerprint."""
        result = super().run_node(n)
        computes = n.op in ("placeholder", "call_function") and isinstance(result, torch.Tensor)
        if computes and result.is_floating_point() and result.numel():
            values = result.detach().numpy()
            self.nodes.setdefault(n.name, _Seen(values.size)).add(values)
        return result


def make_room_for_biases(graph: LitertGraph, placed: Placement) -> dict[str, float]:
    """Widen the ranges of inputs whose scale is so fine that a bias would overflow its 32-bit integer.

    A bias is stored in steps of the input's scale times the weight's. A constant that the converter adds to the bias
    (the 3 of a hard sigmoid behind squeeze and excitation) can be billions of such steps.

    Returns:
        Names of the tensors that were widened, each with the factor, at most `MOST_ROOM`.
    """
    widened: dict[str, float] = {}
    for op in graph.operators:
        if op.kind not in CHANNEL_AXIS or len(op.inputs) < 3 or op.inputs[0] not in placed.ranges:
            continue
        source, weight, bias = op.inputs[:3]
        if bias < 0 or not all(graph.is_constant(i) and graph.tensors[i].type == FLOAT32 for i in (weight, bias)):
            continue
        values = np.moveaxis(graph.floats(weight), CHANNEL_AXIS[op.kind], 0)
        scale = np.abs(values.reshape(len(values), -1)).max(1).astype(np.float64) / 127
        low, high = placed.ranges[source]
        step = np.maximum(scale * (high - low) / 255, 1e-30)
        steps = float((np.abs(graph.floats(bias).ravel()) / step)[scale > 0].max(initial=0))
        if steps > MOST_BIAS_STEPS:
            factor = min(steps / MOST_BIAS_STEPS, MOST_ROOM)
            placed.ranges[source] = (low * factor, high * factor)
            widened[graph.name(source)] = factor
    return widened


def rescale_constant_channels(made: LitertGraph, graph: LitertGraph) -> int:
    """Give output channels whose weights are all zero the usual scale of their layer, and their biases with it.

    The quantizer gives such a channel the smallest scale there is, in whose steps its bias overflows and is cut off.

    Args:
        made: the quantized model, changed in place.
        graph: the float model that it was made of, for the biases.

    Returns:
        How many channels there were.
    """
    pairs = [[op for op in g.operators if op.kind in CHANNEL_AXIS] for g in (made, graph)]
    if len(pairs[0]) != len(pairs[1]):
        return 0
    changed = 0
    for op, source in zip(*pairs, strict=True):
        if len(op.inputs) < 3 or op.inputs[2] < 0 or made.tensors[op.inputs[1]].type != INT8:
            continue
        entry, weight, bias = (made.tensors[i] for i in op.inputs[:3])
        if bias.type not in (INT32, INT64) or entry.quantization is None or not made.is_constant(op.inputs[2]):
            continue
        integers = np.moveaxis(made.integers(op.inputs[1]), CHANNEL_AXIS[op.kind], 0)
        zero = np.logical_not(integers.reshape(len(integers), -1).any(1))
        scales = np.asarray(weight.quantization.scale, np.float32)
        if not zero.any() or zero.all() or len(scales) != len(zero):
            continue
        usual = np.sort(scales[~zero])[(np.count_nonzero(~zero) - 1) // 2]  # as PyTorch takes the median
        scales = np.where(zero, usual, scales).astype(np.float32)
        steps = scales * np.float32(entry.quantization.scale[0])
        stored = made.integers(op.inputs[2]).copy()
        stored[zero] = np.rint(graph.floats(source.inputs[2])[zero].astype(np.float64) / steps[zero])
        weight.quantization.scale, bias.quantization.scale = scales, steps
        made.store(op.inputs[2], stored)
        changed += int(zero.sum())
    return changed
