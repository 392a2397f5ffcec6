"""Shapes of every tensor of an ONNX model, for a batch of one, by ONNX's own inference."""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import TensorProto

from edgeopt.inspection.record import Tally

Shapes = dict[str, tuple[int, ...]]

_STANDARD_TERMS: dict[str, tuple[str, slice]] = {
    "FusedConv": ("Conv", slice(0, 2)),
    "FusedGemm": ("Gemm", slice(0, 2)),
    "FusedMatMul": ("MatMul", slice(0, 2)),
    "QGemm": ("Gemm", slice(0, 4, 3)),
    "QLinearAdd": ("Add", slice(0, 4, 3)),
    "QLinearAveragePool": ("AveragePool", slice(0, 1)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(0, 1)),
    "QLinearLeakyRelu": ("Identity", slice(0, 1)),
    "QLinearMul": ("Mul", slice(0, 4, 3)),
    "QLinearSigmoid": ("Identity", slice(0, 1)),
    "QLinearSoftmax": ("Identity", slice(0, 1)),
}
"""Standard operators with the same result shape as onnxruntime's own, and the inputs that decide it."""
_SHAPING_ATTRIBUTES = (
    "auto_pad", "axis", "ceil_mode", "dilations", "group", "kernel_shape", "pads", "strides", "transA", "transB",
)  # fmt: skip
MULTIPLY_FREE = tuple(
    name for name, (standard, _) in _STANDARD_TERMS.items() if standard not in ("Conv", "Gemm", "MatMul")
)
"""onnxruntime's own operators that multiply nothing worth counting."""


def infer_shapes(
    model: onnx.ModelProto, constants: dict[str, TensorProto], tally: Tally
) -> tuple[onnx.ModelProto, Shapes]:
    """Return the model with its functions inlined, and the shape of every tensor that inference tells."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    batch_fixed = False
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and value.name not in constants and dims[0].dim_value <= 0:
            dims[0].dim_value = 1
            batch_fixed = True
    if batch_fixed:
        tally.notes.append("macs are for a batch of 1; the file leaves it open")
        del fixed.graph.value_info[:]
        for output in fixed.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                dim.Clear()
    try:
        if fixed.functions:
            fixed = onnx.inliner.inline_local_functions(fixed)
        inferred = onnx.shape_inference.infer_shapes(_in_standard_terms(fixed), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        tally.notes.append(f"shape inference failed: {first_line(error)}")
        inferred = fixed
    shapes: Shapes = {name: tuple(t.dims) for name, t in constants.items()}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes.setdefault(value.name, dimensions(value))
    return fixed, shapes


def _in_standard_terms(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose onnxruntime operators are standard ones with the same result shapes, for inference only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == "com.microsoft" and node.op_type in _STANDARD_TERMS:
            node.op_type, picked = _STANDARD_TERMS[node.op_type][0], node.input[_STANDARD_TERMS[node.op_type][1]]
            node.domain = ""
            del node.input[:]
            node.input.extend(picked)
            kept = [a for a in node.attribute if a.name in _SHAPING_ATTRIBUTES]
            del node.attribute[:]
            node.attribute.extend(kept)
    return copy


def dimensions(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the declared shape; a dimension that is open is -1."""
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
