"""How large an ONNX model grows once its functions are inlined: known before anything tries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

MAX_NODES = 500_000
"""No model for a device has more; thirty functions that call each other eight times reach 10^27."""


class ExpansionError(ValueError):
    """A model's functions call themselves, or expand beyond `MAX_NODES`."""


def expanded_nodes(model: onnx.ModelProto) -> int:
    """Return the number of nodes, those inside functions and subgraphs counted at every call.

    Raises:
        ExpansionError: more than `MAX_NODES`, or a function that calls itself.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for key in _callees_first(functions):
        sizes[key] = _size(functions[key].node, sizes)
    return _size(model.graph.node, sizes)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of the subgraphs inside them."""
    pending = list(nodes)
    for node in pending:  # which grows on the way
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def _size(nodes: Iterable[onnx.NodeProto], sizes: dict[tuple[str, str], int]) -> int:
    total = sum(1 + sizes.get((n.domain, n.op_type), 0) for n in all_nodes(nodes))
    if total > MAX_NODES:
        raise ExpansionError(f"its functions expand to more than {MAX_NODES} nodes")
    return total


def _callees_first(functions: dict[tuple[str, str], onnx.FunctionProto]) -> list[tuple[str, str]]:
    """Return functions ordered so that each comes after those it calls."""
    calls = {key: {(n.domain, n.op_type) for n in all_nodes(f.node)} & functions.keys() for key, f in functions.items()}
    order: list[tuple[str, str]] = []
    while calls:
        ready = [key for key, callees in calls.items() if not callees & calls.keys()]
        if not ready:
            raise ExpansionError(f"its function {next(iter(calls))[1]!r} calls itself")
        order.extend(ready)
        for key in ready:
            del calls[key]
    return order
