"""Branches and loops, unrolled where constants settle them."""

from __future__ import annotations

import torch

from edgeopt.core.errors import SourceError, UnsupportedOpError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder

MAX_TRIPS = 10_000
"""Of one loop; what a model unrolls to in all is limited too."""


def if_(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """If on a constant → the branch taken; on a computed condition → both, and torch.where of results of one shape."""
    condition = node.input(0)
    if isinstance(condition, torch.Tensor):
        return node.subgraph("then_branch" if bool(condition.reshape(-1)[:1].any()) else "else_branch", ())
    sides = [_side(node, name) for name in ("then_branch", "else_branch")]
    if len(sides[0]) != len(sides[1]):
        raise SourceError(f"If at {node.place}: its branches differ in outputs; the file is damaged")
    for taken, other in zip(*sides, strict=True):
        if g.shape(taken) != g.shape(other) or g.dtype(taken) != g.dtype(other):
            raise node.unsupported(
                "its condition is computed at run time, and its branches give different shapes; export the model with "
                "the branch that is wanted"
            )
    g.note(f"If at {node.place}: both branches are computed, since its condition is known at run time only")
    flag = g.call(torch.reshape, condition, ())
    return tuple(g.call(torch.where, flag, taken, other) for taken, other in zip(*sides, strict=True))


def _side(node: Node, name: str) -> tuple[Value, ...]:
    try:
        return node.subgraph(name, ())
    except (SourceError, UnsupportedOpError) as error:
        raise node.unsupported(
            f"its condition is computed at run time, so both branches are needed, and its {name} cannot be imported "
            f"for these shapes ({error}); export the model with the branch that is wanted"
        ) from error


def loop(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """Loop whose number of trips is constant → its body as often; what each trip yields is stacked."""
    trips = int(node.constant(0).reshape(())) if node.has(0) else None
    going: Value = node.input(1) if node.has(1) else torch.tensor(True)
    state = [node.input(i) for i in range(2, len(node.inputs))]
    yielded: list[tuple[Value, ...]] = []
    trip = 0
    while (trips is None or trip < trips) and _constant_flag(node, going):
        if trip == MAX_TRIPS:
            raise SourceError(f"Loop at {node.place} runs more than {MAX_TRIPS} times; no model needs that")
        going, *results = node.subgraph("body", (torch.tensor(trip, dtype=torch.int64), going, *state))
        if len(results) < len(state):
            raise SourceError(f"Loop at {node.place}: its body lacks outputs; the file is damaged")
        state, each = list(results[: len(state)]), tuple(results[len(state) :])
        yielded.append(each)
        trip += 1
    wanted = len(node.proto.output) - len(state)
    if wanted > 0 and not yielded:
        raise node.unsupported("it runs no trip, so that the shape of what it stacks is not known")
    stacked = [g.call(torch.stack, [each[i] for each in yielded]) for i in range(wanted)] if wanted > 0 else []
    return (*state, *stacked)


def scan(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """Scan → its body once per element along the scanned axis; what each yields is stacked."""
    if node.opset < 9:
        raise node.unsupported("it has the form of opset 8; export with opset 9 or later")
    count = node.attr_int("num_scan_inputs")
    inputs = [node.input(i) for i in range(len(node.inputs))]
    if not 1 <= count <= len(inputs):
        raise SourceError(f"Scan at {node.place} names {count} scanned inputs; the file is damaged")
    state, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = node.attr_ints("scan_input_axes") or [0] * count
    backwards = node.attr_ints("scan_input_directions") or [0] * count
    length = g.shape(scanned[0])[axes[0]]
    if length > MAX_TRIPS or len(axes) != count or len(backwards) != count or length == 0:
        raise SourceError(f"Scan at {node.place} runs over {length} elements of {count} inputs: not what a model has")
    yielded: list[tuple[Value, ...]] = []
    for step in range(length):
        now = [
            g.call(torch.select, x, axis, length - 1 - step if back else step)
            for x, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        results = node.subgraph("body", (*state, *now))
        state, each = list(results[: len(state)]), results[len(state) :]
        yielded.append(each)
    wanted = len(yielded[0])
    ends = node.attr_ints("scan_output_axes") or [0] * wanted
    turned = node.attr_ints("scan_output_directions") or [0] * wanted
    if len(ends) != wanted or len(turned) != wanted:
        raise SourceError(f"Scan at {node.place} does not fit its body's {wanted} outputs; the file is damaged")
    stacked = []
    for index, (axis, back) in enumerate(zip(ends, turned, strict=True)):
        parts = [each[index] for each in (reversed(yielded) if back else yielded)]
        rank = g.rank(parts[0]) + 1
        stacked.append(g.call(torch.stack, parts, axis + rank if axis < 0 else axis))
    return (*state, *stacked)


def _constant_flag(node: Node, value: Value) -> bool:
    if not isinstance(value, torch.Tensor):
        raise node.unsupported(
            "how often it runs depends on the input's values; export the model with a fixed number of steps"
        )
    return bool(value.reshape(-1)[:1].any())


OPS: dict[str, Builder] = {"If": if_, "Loop": loop, "Scan": scan}
