"""Imports the nodes of a graph and of the subgraphs inside them, one after the other."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TypeAlias

import onnx
import torch

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.coverage import BUILDERS, Coverage, CoverageError, key_of
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Quantized, Value
from edgeopt.onnx_import.ops.quantized import QUANTIZED_OPS
from edgeopt.onnx_import.ops.quantized_values import dequantized_before, passes_through, stored_integers, with_real_fill
from edgeopt.onnx_import.tensors import to_torch

MAX_SUBGRAPH_NODES = 20_000
"""Nodes that branches and unrolled loops may add; an LSTM written as a loop of 500 steps has fewer."""

Scope: TypeAlias = MutableMapping[str, "Value | Quantized"]


class Walk:
    """Imports nodes into a graph under construction.

    Args:
        g: the graph.
        opset: of the model's standard domain.
        read: names of all values that anything reads.
        table: every operator of the model, for the error that one of them is unknown.
        readers: of each value of the main graph.
    """

    def __init__(
        self,
        g: GraphBuilder,
        opset: int,
        read: frozenset[str],
        table: tuple[Coverage, ...],
        readers: Mapping[str, Sequence[onnx.NodeProto]],
    ) -> None:
        self._readers = readers
        self._g = g
        self._opset = opset
        self._read = read
        self._table = table
        self._stored: dict[int, tuple[onnx.GraphProto, dict[str, Value | Quantized]]] = {}
        self._constants: dict[int, tuple[onnx.NodeProto, Value]] = {}
        self._added = 0

    def initializers(self, graph: onnx.GraphProto) -> dict[str, Value | Quantized]:
        """Return the stored tensors of a graph: the same ones however often it is imported.

        Raises:
            SourceError: one is damaged or sparse.
        """
        if id(graph) not in self._stored:
            if graph.sparse_initializer:
                raise SourceError("sparse initializers cannot be imported; store them as dense tensors")
            values: dict[str, Value | Quantized] = {
                t.name: self._g.initializer(t.name, to_torch(t, f"initializer {t.name!r}")) for t in graph.initializer
            }
            self._stored[id(graph)] = (graph, values)  # the graph too: its id must not be given to another
        return self._stored[id(graph)][1]

    def nodes(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        """Import nodes in their order; their results join `scope`.

        Raises:
            SourceError: a node reads what nothing computes.
            UnsupportedOpError: an operator, or a form of one, that cannot be imported.
        """
        for proto in nodes:
            op = key_of(proto)
            if op not in BUILDERS:
                raise CoverageError(self._table, first=op)
            for name, output in zip(proto.output, self._results(proto, op, scope), strict=False):
                if name:
                    scope[name] = output

    def output(self, scope: Mapping[str, Value | Quantized], name: str) -> Value:
        """Return a graph's output, as integers where the file declares them.

        Raises:
            SourceError: nothing computes it.
        """
        if name not in scope:
            raise SourceError(f"no node computes output {name!r}; the file is damaged")
        value = scope[name]
        return stored_integers(self._g, value) if isinstance(value, Quantized) else value

    def _results(self, proto: onnx.NodeProto, op: str, scope: Scope) -> tuple[Value | Quantized, ...]:
        if op == "Constant" and id(proto) in self._constants:
            return (self._constants[id(proto)][1],)
        found = [self._input(scope, name, proto) for name in proto.input]
        if op == "Gather" and found and isinstance(found[0], torch.Tensor) and not found[0].is_floating_point():
            after = self._readers.get(proto.output[0], ())
            if (
                len(after) == 1
                and after[0].op_type == "DequantizeLinear"
                and found[0].dtype in (torch.int8, torch.uint8)
            ):
                found[0] = dequantized_before(self._g, after[0], found[0], scope) or found[0]
        grids = {i: v.grid for i, v in enumerate(found) if isinstance(v, Quantized)}
        kept = op in QUANTIZED_OPS or passes_through(op, found)
        inputs = [
            (value.real if kept else stored_integers(self._g, value)) if isinstance(value, Quantized) else value
            for value in found
        ]
        if kept and op == "Pad" and grids:
            inputs = with_real_fill(inputs, grids[0])

        def run(graph: onnx.GraphProto, given: Sequence[Value]) -> tuple[Value, ...]:
            place, name = self._g.place, self._g.op
            results = self._subgraph(graph, given, scope)
            self._g.place, self._g.op = place, name
            return results

        node = Node(proto, tuple(inputs), self._opset, self._read, grids if op in QUANTIZED_OPS else {}, run)
        self._g.place, self._g.op = node.place, node.op
        result = BUILDERS[op](self._g, node)
        results = result if isinstance(result, tuple) else (result,)
        if op == "Constant" and isinstance(result, torch.Tensor):
            self._constants[id(proto)] = (proto, result)
        if kept and op not in QUANTIZED_OPS and grids:
            return tuple(r if isinstance(r, Quantized) else Quantized(r, grids[0]) for r in results)
        return results

    def _subgraph(self, graph: onnx.GraphProto, given: Sequence[Value], outer: Scope) -> tuple[Value, ...]:
        names = [i.name for i in graph.input]
        if len(names) != len(given):
            raise SourceError(
                f"{self._g.op} at {self._g.place}: its subgraph takes {len(names)} inputs, not {len(given)}; the file "
                "is damaged"
            )
        self._added += len(graph.node)
        if self._added > MAX_SUBGRAPH_NODES:
            raise SourceError(
                f"{self._g.op} at {self._g.place} unrolls to more than {MAX_SUBGRAPH_NODES} nodes; export the model "
                "for a shorter input, or its recurrent layer as one operator"
            )
        inner: ChainMap[str, Value | Quantized] = ChainMap({}, dict(self.initializers(graph)), *_maps(outer))
        inner.update(zip(names, given, strict=True))
        self.nodes(graph.node, inner)
        return tuple(self.output(inner, o.name) for o in graph.output)

    def _input(self, scope: Scope, name: str, proto: onnx.NodeProto) -> Value | Quantized | None:
        if not name:
            return None
        if name not in scope:
            raise SourceError(
                f"{proto.op_type} {proto.name!r} reads {name!r}, which nothing computes; the file is damaged"
            )
        return scope[name]


def _maps(scope: Scope) -> tuple[Scope, ...]:
    return tuple(scope.maps) if isinstance(scope, ChainMap) else (scope,)
