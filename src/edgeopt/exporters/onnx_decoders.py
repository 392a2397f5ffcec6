"""How integer weights become floats in an ONNX graph: the forms that ONNX Runtime runs fast, with equal results."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from edgeopt.exporters.onnx_rewrites import remove_dead_nodes, remove_unused_constants


def gather_integers(model: onnx.ModelProto) -> int:
    """Look rows up in integer tables before scaling them; returns how many tables.

    Before: `Gather(DequantizeLinear(int8 W, scale, axis=0), ids)`, which decodes the whole table at each call.
    After: `Cast(Gather(int8 W, ids)) * Gather(scale, ids)`.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    changed = 0
    for node in [n for n in graph.node if n.op_type == "Gather"]:
        decoder = producers.get(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if decoder is None or decoder.op_type != "DequantizeLinear" or axis != 0 or decoder.input[0] not in constants:
            continue
        scale = numpy_helper.to_array(constants[decoder.input[1]])
        if scale.ndim != 1:
            continue
        column = f"{decoder.input[1]}_of_rows"
        graph.initializer.append(numpy_helper.from_array(scale.reshape(-1, 1), column))
        replace(graph, node, lookup(node, decoder.input[0], column))
        changed += 1
    remove_dead_nodes(model)
    return changed


def fold_decoders(model: onnx.ModelProto) -> int:
    """Decode the int8 weights of transposed convolutions when a session is made; returns how many.

    Before: `ConvTranspose(x, DequantizeLinear(int8 W, scale))`; after: `ConvTranspose(x, Cast(int8 W) * scale)`. ONNX
    Runtime has no integer kernel for them, and does not fold a DequantizeLinear.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    changed = 0
    for node in [n for n in graph.node if n.op_type == "ConvTranspose"]:
        decoder = producers.get(node.input[1])
        if decoder is None or decoder.op_type != "DequantizeLinear" or decoder.input[0] not in constants:
            continue
        axis = next((a.i for a in decoder.attribute if a.name == "axis"), 1)
        scale = numpy_helper.to_array(constants[decoder.input[1]])
        rank = len(constants[decoder.input[0]].dims)
        name = f"{node.input[1]}_scale"
        shaped = scale.reshape([-1 if a == axis else 1 for a in range(rank)])
        graph.initializer.append(numpy_helper.from_array(shaped, name))
        replace(graph, decoder, cast_and_scale(decoder.input[0], name, decoder.output[0]))
        changed += 1
    remove_unused_constants(model)
    return changed


def lookup(node: onnx.NodeProto, table: str, scale: str) -> list[onnx.NodeProto]:
    """Return the nodes of `Cast(Gather(table, ids)) * Gather(scale, ids)`."""
    out = node.output[0]
    return [
        helper.make_node("Gather", [table, node.input[1]], [f"{out}_rows"], name=node.name or out),
        helper.make_node("Gather", [scale, node.input[1]], [f"{out}_scales"], name=f"{out}_scales"),
        *cast_and_scale(f"{out}_rows", f"{out}_scales", out),
    ]


def cast_and_scale(integers: str, scale: str, out: str) -> list[onnx.NodeProto]:
    """Return the nodes of `Cast(integers) * scale`."""
    return [
        helper.make_node("Cast", [integers], [f"{out}_cast"], name=f"{out}_cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_cast", scale], [out], name=f"{out}_scale"),
    ]


def replace(graph: onnx.GraphProto, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    """Put nodes in the place of another."""
    position = list(graph.node).index(old)
    graph.node.remove(old)
    for node in reversed(new):
        graph.node.insert(position, node)
