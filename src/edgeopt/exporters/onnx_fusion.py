"""What of an `.onnx` file runs on integers once ONNX Runtime has optimized it, and what does not."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

INTEGER = frozenset(
    {
        "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm",
        "QAttention", "QEmbedLayerNormalization", "MatMulNBits",
    }
)  # fmt: skip
# What stores, moves or converts values computes nothing and counts as neither.
NOT_COUNTED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Constant", "ConstantOfShape", "Reshape",
        "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Gather", "GatherND", "GatherElements",
        "Slice", "Split", "Expand", "Pad", "Tile", "Range", "ReorderInput", "ReorderOutput", "Size", "Dropout",
        "DepthToSpace", "SpaceToDepth", "Where", "Equal", "Not", "And", "Or", "Less", "Greater", "ScatterND",
        "LessOrEqual", "GreaterOrEqual",
    }
)  # fmt: skip
LAYERS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
# What computes on integers where it is given some.
FOLLOWING = frozenset({"MaxPool", "NhwcMaxPool", "Resize", "Concat", "Relu", "Clip", "AveragePool"})


@dataclass(frozen=True)
class Kernels:
    """How many operators compute on integers and on floats, and the lines that name the latter."""

    integer_ops: int
    float_ops: int
    in_float: tuple[str, ...]


def kernels_of(path: Path, *, weight_only: bool = False) -> Kernels:
    """Count operators after all of ONNX Runtime's optimizations on this host's CPU.

    Args:
        path: of the file.
        weight_only: layers compute in float by design, so the reason says so.
    """
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch, "optimized.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
        graph = onnx.load(optimized).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {i.name: i.data_type for i in graph.initializer}
    integer_outputs = _integer_outputs(graph)
    integer = in_float = 0
    layers: list[str] = []
    others: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in NOT_COUNTED:
            continue
        follows = node.op_type in FOLLOWING and node.input[0] in integer_outputs
        if follows or node.op_type.startswith("QLinear") or node.op_type in INTEGER:
            integer += 1
        elif types.get(node.output[0], onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT:
            in_float += 1
            if node.op_type in LAYERS:
                reason = "integer weights, computed in float" if weight_only else "computed in float"
                layers.append(f"{node.op_type} {node.name or node.output[0]}: {reason}")
            else:
                others[node.op_type] += 1
    lines = (*layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))
    return Kernels(integer, in_float, lines)


def _integer_outputs(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that hold quantized activations, through what moves them."""
    found: set[str] = set()
    for node in graph.node:
        quantizes = node.op_type == "QuantizeLinear" or node.op_type in {"QGemm", "QLinearMatMul"}
        moves = node.op_type in NOT_COUNTED | FOLLOWING and node.op_type != "DequantizeLinear"
        carried = moves and node.op_type != "Cast" and any(name in found for name in node.input)
        if quantizes or carried or node.op_type.startswith("QLinear"):
            found.update(node.output)
    return found
