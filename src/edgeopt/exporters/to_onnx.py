"""ONNX by `torch.onnx.export`; integer weights and fused integer kernels by rewrites of that graph."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch.fx import GraphModule

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import Scheme, scheme_of
from edgeopt.exporters import onnx_decoders, onnx_integer_weights, onnx_rewrites
from edgeopt.exporters.kept_layers import kept_weights
from edgeopt.exporters.onnx_fusion import kernels_of
from edgeopt.exporters.onnx_names import name_values, provisional_names
from edgeopt.exporters.onnx_suppression import suppress
from edgeopt.exporters.program import load_program

TOOLS = ("torch", "onnx", "onnxruntime")
OPSET = 20
OPSET_WITH_INT16_AND_INT4 = 21
SATURATES = (
    "uint8 activations with int8 weights: x86 without VNNI saturates in 16-bit sums; a target with int8_activations: "
    "int8 or reduce_range: true avoids it"
)


def export(request: ExportRequest) -> Export:
    """Write `request.out`, one self-contained `.onnx` file.

    Raises:
        Exception: whatever the exporter raises; the worker turns it into one line.
    """
    out = Path(request.out)
    scheme = scheme_of(request.precision)
    program = load_program(request.program)
    wide = scheme.activation_bits == 16 and scheme.kind == "static"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and onnxscript's own deprecations
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=provisional_names("input", len(request.inputs)),
            output_names=provisional_names("output", len(request.outputs)),
            opset_version=OPSET_WITH_INT16_AND_INT4 if wide or scheme.weight_bits == 4 else OPSET,
        )
    assert exported is not None
    model = exported.model_proto
    notes: list[str] = []
    if scheme.kind == "static":
        onnx_rewrites.pool_means(model)  # needs the ranks that the next rewrite drops
    onnx_rewrites.fold_pads(model)
    if scheme.kind == "static":
        _lower_static(model, request, scheme, notes)
    elif scheme.kind in ("dynamic", "weight_only"):
        _store_weights(model, program, request, scheme, notes)
    elif request.precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
        del model.graph.value_info[:]  # the tool leaves float16 there for operators that it keeps in float32
        onnx_rewrites.sort_nodes(model)
    onnx_rewrites.strip_local_paths(model)
    model.producer_name = "edgeopt"
    kernels = None
    if scheme.kind != "float":
        onnx.save(model, out)  # what stands behind a network is not counted among its operators
        kernels = kernels_of(out, weight_only=scheme.kind == "weight_only")
    outputs = [s.name for s in request.outputs]
    if request.suppression is not None:
        outputs = suppress(model, outputs, request.suppression)
        notes.append(f"non-maximum suppression is in the graph: {_told(request.suppression)}")
    name_values(model, [s.name for s in request.inputs], outputs)
    onnx.save(model, out)
    onnx.checker.check_model(str(out), full_check=True)
    return Export(
        inputs=tuple(_spec(value, request.inputs) for value in model.graph.input),
        outputs=tuple(_spec(value, request.outputs) for value in model.graph.output),
        not_quantized=kernels.in_float if kernels else (),
        notes=tuple(notes),
        integer_ops=kernels.integer_ops if kernels else None,
        float_ops=kernels.float_ops if kernels else None,
    )


def _lower_static(model: onnx.ModelProto, request: ExportRequest, scheme: Scheme, notes: list[str]) -> None:
    """Rewrite the exported quantized graph so that ONNX Runtime's integer kernels fit it."""
    onnx_decoders.gather_integers(model)
    onnx_decoders.fold_decoders(model)
    onnx_rewrites.merge_repeated_quantization(model)
    onnx_rewrites.sort_nodes(model)
    if scheme.activation_bits == 16:
        notes.append("onnxruntime's CPU has no kernels for 16-bit activations: it computes in float; NPUs have them")
        return
    reduced = request.quantization.reduce_range
    if reduced:
        notes.append("weights use 7 of 8 bits, so that x86 without VNNI does not saturate")
    if request.int8_activations == "uint8":
        onnx_rewrites.shift_activations_to_uint8(model)
        if not reduced:
            notes.append(SATURATES)


def _store_weights(
    model: onnx.ModelProto,
    program: torch.export.ExportedProgram,
    request: ExportRequest,
    scheme: Scheme,
    notes: list[str],
) -> None:
    """Store weights in integers; activations stay in float, or are quantized at each call."""
    module = program.module()
    assert isinstance(module, GraphModule)
    dynamic = scheme.kind == "dynamic"
    reduced = dynamic and request.quantization.reduce_range
    stored = onnx_integer_weights.store_weights(
        model,
        onnx_integer_weights.Plan(
            mode="dynamic" if dynamic else "weight_only",
            bits=scheme.weight_bits,
            block_size=request.quantization.block_size,
            largest=63 if reduced else 127,
            kept=kept_weights(module, request.quantization.keep_float),
        ),
    )
    if dynamic:
        notes.append(f"{stored} weights are int8; matrix products compute in int8, convolutions in float")
        notes.append("matrix products use 7 of 8 bits of their weights" if reduced else SATURATES)
    else:
        notes.append(f"{stored} weights are integers; onnxruntime may quantize the inputs of matrix products to 8 bits")


def _told(options: DetectionOptions) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.model_dump(mode="json").items())


def _spec(value: onnx.ValueInfoProto, sources: tuple[TensorSpec, ...]) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    layout = next((s.layout for s in sources if s.name == value.name), "")
    return TensorSpec(value.name, shape, dtype, layout)
