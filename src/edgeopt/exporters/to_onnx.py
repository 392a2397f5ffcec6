"""ONNX by `torch.onnx.export`; dynamic int8 and fp16 by ONNX Runtime's own tools."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.model import TensorSpec
from edgeopt.exporters import onnx_rewrites
from edgeopt.exporters.program import load_program

TOOLS = ("torch", "onnx", "onnxruntime")
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def export(request: ExportRequest) -> Export:
    """Write `request.out`, one self-contained `.onnx` file.

    Raises:
        Exception: whatever the exporter raises; the worker turns it into one line.
    """
    out = Path(request.out)
    program = load_program(request.program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and onnxscript's own deprecations
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[s.name for s in request.inputs],
            output_names=[s.name for s in request.outputs],
        )
    assert exported is not None
    model = exported.model_proto
    notes: list[str] = []
    onnx_rewrites.fold_pads(model)
    if request.precision == "static_wi8_ai8":
        onnx_rewrites.merge_repeated_quantization(model)
        if request.int8_activations == "uint8":
            onnx_rewrites.shift_activations_to_uint8(model)
            notes.append("uint8 activations with int8 weights: x86 without VNNI can saturate in 16-bit sums")
    elif request.precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
        del model.graph.value_info[:]  # the tool leaves float16 there for operators that it keeps in float32
        onnx_rewrites.sort_nodes(model)
    onnx_rewrites.strip_local_paths(model)
    model.producer_name = "edgeopt"
    onnx.save(model, out)
    if request.precision == "dynamic_wi8_afp32":
        _quantize_dynamically(out)
        model = onnx.load(out)
        stored = onnx_rewrites.store_convolution_weights_in_int8(model)
        notes.append(f"{stored} convolutions store int8 weights and compute in float; matrix products compute in int8")
        onnx_rewrites.strip_local_paths(model)
        onnx.save(model, out)
    onnx.checker.check_model(str(out), full_check=True)
    return Export(
        inputs=tuple(_spec(value, request.inputs) for value in model.graph.input),
        outputs=tuple(_spec(value, request.outputs) for value in model.graph.output),
        not_quantized=() if request.precision in ("fp32", "fp16") else left_in_float(model),
        notes=tuple(notes),
    )


def left_in_float(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the layers of a quantized model that still multiply floats, and the counts of other float operators."""
    producers = {output: node for node in model.graph.node for output in node.output}
    float_layers: list[str] = []
    others: Counter[str] = Counter()
    structural = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "Reshape", "Transpose"}
    for node in model.graph.node:
        feeding = [producers[i].op_type for i in node.input if i in producers]
        if node.op_type in COMPUTE:
            if feeding.count("DequantizeLinear") < 2:
                float_layers.append(f"{node.op_type} {node.name or node.output[0]}: its inputs are float")
        elif node.op_type not in structural and not node.op_type.endswith("Integer"):
            reads_dequantized = bool(feeding) and all(kind == "DequantizeLinear" for kind in feeding)
            if not reads_dequantized and node.op_type not in ("Relu", "Clip", "Mul", "Cast", "Add"):
                others[node.op_type] += 1
    return (*float_layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))


def _quantize_dynamically(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(
            path,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def _spec(value: onnx.ValueInfoProto, sources: tuple[TensorSpec, ...]) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    layout = next((s.layout for s in sources if s.name == value.name), "")
    return TensorSpec(value.name, shape, dtype, layout)
