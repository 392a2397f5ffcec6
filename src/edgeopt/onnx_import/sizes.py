"""Sizes that an ONNX graph states as constants: held against what a model can have before anything folds them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.expansion import all_nodes

SIZES = {"ConstantOfShape": 0, "Expand": 1, "Pad": 1, "Range": 1, "Resize": 3, "Tile": 1}
"""Operators, and which input gives the size of what they make."""
MOST_NUMBERS = 64
MOST_ELEMENTS = 2**28
"""A gibibyte in float32."""


def refuse_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph that makes a tensor which no device could hold: folding its constants would make it here.

    Raises:
        SourceError: names the operator.
    """
    nodes = list(all_nodes([*model.graph.node, *(n for f in model.functions for n in f.node)]))
    constants = {t.name: t for t in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    for node in nodes:
        place = SIZES.get(node.op_type, len(node.input))
        tensor = constants.get(node.input[place]) if place < len(node.input) else None
        if tensor is None or tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
            continue
        if math.prod(tensor.dims) > MOST_NUMBERS:
            continue
        numbers = [abs(int(v)) for v in np.ravel(numpy_helper.to_array(tensor))]
        asked = math.prod(n for n in numbers if n)
        if asked > MOST_ELEMENTS:
            raise SourceError(
                f"{path}: {node.op_type} at node {node.name or node.output[0]!r} makes a tensor of {asked} elements or "
                "more; no model for a device does"
            )
