"""Reads the integer weights of a Core ML package back, with their scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.exporters.stored_weight import StoredWeight
from edgeopt.mil import load_package
from edgeopt.mil.constexpr import decode


def stored_weights(path: Path) -> tuple[StoredWeight, ...]:
    """Return the weights that a package stores as integers, in the order of its constants.

    The integers are those of the program that was exported, bit for bit. The scales are rounded to half precision in a
    package that computes in it (every precision of ours but fp32), since a constant has its scale's type.

    Raises:
        ArtifactError: the package is damaged.
    """
    found = []
    for op in load_package(path).body.operations:
        if op.op_type == "constexpr_affine_dequantize":
            axis = int(np.asarray(decode(op.inputs["axis"])))
            found.append(_weight(op, "quantized_data", axis))
        elif op.op_type == "constexpr_blockwise_shift_scale" and op.inputs["data"].op.op_type == "const":
            scale = np.asarray(decode(op.inputs["scale"]))
            axis = next((i for i, size in enumerate(scale.shape) if size > 1), 0)
            found.append(_weight(op, "data", axis))
    return tuple(found)


def _weight(op: Any, data: str, axis: int) -> StoredWeight:
    values = np.asarray(decode(op.inputs[data])).astype(np.int8)
    scale = np.asarray(decode(op.inputs["scale"]), dtype=np.float32)
    blocks = scale.ndim == 2 and scale.shape[1] > 1 and axis == 0
    return StoredWeight(values, scale if blocks else scale.reshape(-1), axis)
