"""The names of an ONNX graph's inputs and outputs, set apart from those of its weights and inner values.

One ONNX graph has one space of names, in which PyTorch's exporter also puts the weights, as the module calls them, and
values after their operators (`add`, `embedding`). An output of such a name would define it twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def provisional_names(kind: str, count: int) -> list[str]:
    """Return names that no weight and no operator has, to export under until `name_values`."""
    return [f"//{kind}/{index}" for index in range(count)]


def name_values(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name a graph's inputs and outputs, in place; whatever else has such a name gets another.

    Before: `//input/0 → Add(boxes) → //output/0`; after: `image → Add(boxes_value) → boxes`.

    Requires that inputs, outputs, initializers and results of nodes have different names now.
    """
    graph = model.graph
    renamed = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    renamed |= {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    wanted = {*inputs, *outputs}
    present = set(_names(graph))
    for name in sorted(present & wanted - renamed.keys()):
        free = f"{name}_value"
        while free in present or free in wanted:
            free += "_"
        present.add(free)
        renamed[name] = free
    _rename(graph, renamed)


def _names(graph: onnx.GraphProto) -> list[str]:
    names = [v.name for v in (*graph.input, *graph.output)] + [t.name for t in graph.initializer]
    for node in graph.node:
        names.extend(node.output)
        for inner in _bodies(node):
            names.extend(_names(inner))
    return names


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    for constant in graph.initializer:
        constant.name = renamed.get(constant.name, constant.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = renamed.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = renamed.get(annotation.tensor_name, annotation.tensor_name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for inner in _bodies(node):
            _rename(inner, renamed)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in ((a.g, *a.graphs) if a.HasField("g") else a.graphs)]
