"""Reads the integer weights of an `.onnx` file back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.exporters.stored_weight import StoredWeight


def stored_weights(path: Path) -> tuple[StoredWeight, ...]:
    """Return the integer weights of convolutions, matrix products and embeddings, each once, in order of first use.

    Shapes are the file's: convolutions `[output, input, height, width]`, transposed ones `[input, output, ...]`, matrix
    products `[inputs, outputs]` or its transpose, as `axis` tells, embeddings `[rows, width]`. Block-wise scales have
    the shape (output channels, blocks). Float weights are left out.
    """
    graph = onnx.load(path).graph
    constants = {i.name: i for i in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, StoredWeight] = {}
    for node in graph.node:
        for name in node.input:
            kind = constants[name].data_type if name in constants else None
            if kind not in (onnx.TensorProto.INT8, onnx.TensorProto.INT4) or name in found:
                continue
            if len(constants[name].dims) >= 2 and (scale := _scale(node, readers, constants)) is not None:
                values = numpy_helper.to_array(constants[name]).astype(np.int8)
                found[name] = _described(values, scale, node)
    return tuple(found.values())


def _described(values: np.ndarray, scale: np.ndarray, node: onnx.NodeProto) -> StoredWeight:
    block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    if block:
        return StoredWeight(values, np.ascontiguousarray(scale.T), 1)
    if scale.ndim == values.ndim:
        return StoredWeight(values, scale.reshape(-1), next(a for a in range(scale.ndim) if scale.shape[a] != 1))
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if node.op_type in ("Gather", "MatMulInteger"):
        axis = 0 if node.op_type == "Gather" else 1
    return StoredWeight(values, scale.reshape(-1), axis % values.ndim)


def _scale(
    node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], constants: dict[str, onnx.TensorProto]
) -> np.ndarray | None:
    """Return the scale that an operator's integer weight is multiplied by."""
    if node.op_type == "DequantizeLinear":
        return numpy_helper.to_array(constants[node.input[1]])
    if node.op_type == "Gather":  # the scales of the rows are looked up beside it
        beside = [r for r in readers[node.input[1]] if r.op_type == "Gather" and r is not node]
        products = {p.name for r in readers.get(node.output[0], []) for p in readers.get(r.output[0], [])}
        for other in beside:
            if other.input[0] in constants and any(p.name in products for p in readers.get(other.output[0], [])):
                return numpy_helper.to_array(constants[other.input[0]])
        return None
    if node.op_type in ("Cast", "MatMulInteger"):
        here = node
        if node.op_type == "MatMulInteger":
            here = readers[node.output[0]][0]
        for product in readers.get(here.output[0], []):
            for name in product.input:
                if name in constants:
                    return numpy_helper.to_array(constants[name])
                scales = _product_of_scales(name, readers, constants)
                if name != here.output[0] and scales is not None:
                    return scales
    return None


def _product_of_scales(
    name: str, readers: dict[str, list[onnx.NodeProto]], constants: dict[str, onnx.TensorProto]
) -> np.ndarray | None:
    """Return the constant of the product that computes `name`: activation scale times weight scales."""
    for nodes in readers.values():
        for node in nodes:
            if node.output[0] == name and node.op_type == "Mul":
                return next((numpy_helper.to_array(constants[i]) for i in node.input if i in constants), None)
    return None
