"""What of a `.tflite` file runs on integers, and what does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ai_edge_litert import schema_py_generated as schema

from edgeopt.exporters.litert_graph import LitertGraph, Operator
from edgeopt.exporters.litert_ranges import EXACT_MOVERS
from edgeopt.exporters.litert_weights import WEIGHTS

# What converts or moves values computes nothing and counts as neither.
NOT_COUNTED = (EXACT_MOVERS - {"MAX_POOL_2D"}) | {
    "QUANTIZE", "DEQUANTIZE", "CAST", "EMBEDDING_LOOKUP", "GATHER", "PACK", "SHAPE", "RESIZE_NEAREST_NEIGHBOR",
}  # fmt: skip
NARROW = frozenset({schema.TensorType.INT4, schema.TensorType.INT8, schema.TensorType.INT16})


@dataclass(frozen=True)
class Kernels:
    """How many operators compute on integers and on floats, and the lines that name the latter."""

    integer_ops: int
    float_ops: int
    in_float: tuple[str, ...]


def kernels_of(graph: LitertGraph) -> Kernels:
    """Count operators by what they compute; what converts or moves values counts as neither.

    A layer with integer weights and float activations computes on integers too: its kernel quantizes the activations
    at each call.
    """
    integer = in_float = 0
    layers: list[str] = []
    others: Counter[str] = Counter()
    for number, op in enumerate(graph.operators):
        if op.kind in NOT_COUNTED or not op.outputs:
            continue
        if _on_integers(graph, op):
            integer += 1
        elif graph.tensors[op.outputs[0]].type == schema.TensorType.FLOAT32:
            in_float += 1
            if op.kind in WEIGHTS:
                layers.append(f"{op.kind} #{number} ({graph.name(op.outputs[0])}): {_reason(graph, op)}")
            else:
                others[op.kind] += 1
    lines = (*layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))
    return Kernels(integer, in_float, lines)


def _on_integers(graph: LitertGraph, op: Operator) -> bool:
    if graph.tensors[op.outputs[0]].type in NARROW:
        return True
    position = WEIGHTS.get(op.kind)
    return position is not None and graph.tensors[op.inputs[position]].type in NARROW


def _reason(graph: LitertGraph, op: Operator) -> str:
    weight = op.inputs[WEIGHTS[op.kind]]
    decoders = {o.outputs[0]: o.inputs[0] for o in graph.operators if o.kind == "DEQUANTIZE"}
    if graph.tensors[decoders.get(weight, weight)].type in NARROW:
        return "integer weights, computed in float"
    return "its weights are float"
