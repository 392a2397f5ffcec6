"""Reads the integer weights of a `.tflite` file back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeopt.exporters.litert_graph import LitertGraph
from edgeopt.exporters.stored_weight import StoredWeight

# The input that holds the weight.
WEIGHTS = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "CONV_3D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "EMBEDDING_LOOKUP": 1,
}


def stored_weights(path: Path) -> tuple[StoredWeight, ...]:
    """Return the integer weights of convolutions, linear layers and embeddings, each once, in the order of execution.

    Shapes are the format's: convolutions `[output, height, width, input]`, depthwise ones `[1, height, width, output]`,
    linear layers `[output, input]`, embeddings `[rows, width]`. Float weights are left out.
    """
    graph = LitertGraph(path.read_bytes())
    sources = {o.outputs[0]: o.inputs[0] for o in graph.operators if o.kind == "DEQUANTIZE"}
    found: dict[int, StoredWeight] = {}
    for op in graph.operators:
        if op.kind not in WEIGHTS:
            continue
        index = sources.get(op.inputs[WEIGHTS[op.kind]], op.inputs[WEIGHTS[op.kind]])
        if index not in found and graph.is_constant(index) and _is_quantized(graph, index):
            found[index] = _read(graph, index)
    return tuple(found.values())


def _is_quantized(graph: LitertGraph, index: int) -> bool:
    return graph.tensors[index].type in (schema.TensorType.INT4, schema.TensorType.INT8)


def _read(graph: LitertGraph, index: int) -> StoredWeight:
    values = graph.integers(index)
    quantization = graph.tensors[index].quantization
    if quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
        scales = quantization.details.scales
        data = graph.model.buffers[graph.tensors[scales].buffer].data
        scale = np.frombuffer(data, np.float16).astype(np.float32)
        return StoredWeight(values, scale.reshape(values.shape[0], -1), 0)
    scale = np.asarray(quantization.scale, np.float32)
    return StoredWeight(values, scale, int(quantization.quantizedDimension))
