"""Core ML ML Programs by coremltools, from the exported program; every kind of weight that the format can store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from torch.fx import GraphModule

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import Scheme, scheme_of
from edgeopt.exporters.coreml_constants import store_integers
from edgeopt.exporters.coreml_executorch_weights import integers_of, layer_weights
from edgeopt.exporters.coreml_lowering import lowered_programs
from edgeopt.exporters.coreml_operators import count_operators, left_in_float
from edgeopt.exporters.coreml_palettizing import palettizing_pipeline
from edgeopt.exporters.program import example_inputs, load_program
from edgeopt.mil.integrity import seal
from edgeopt.worker import report

TOOLS = ("torch", "coremltools")
SCALES_OF_SUMS = "common::distributive_quantized_binary_op_scale_normalization"
"""Divides a sum's scales by that of one operand, in float16: it saves a multiplication and moves results by up to a
tenth of a step, away from those of the other formats."""
DTYPES = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32"}


def export(request: ExportRequest) -> Export:
    """Write `request.out`, an `.mlpackage` folder.

    Raises:
        UsageError: the target's system version does not know what the precision needs.
        Exception: whatever the converter raises; the worker turns it into one line.
    """
    scheme = scheme_of(request.precision)
    _require_system(request, scheme)
    program = load_program(request.program)
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scheme.kind in ("weight_only", "dynamic"):
            program = _with_stored_weights(program, request, scheme, notes)
        model = _convert(program, request, scheme)
    model.author = "edgeopt"
    model.save(request.out)
    seal(Path(request.out))
    description = model.get_spec().description
    counts = count_operators(model._mil_program) if scheme.kind != "float" else None
    return Export(
        inputs=tuple(_spec(feature, request.inputs) for feature in description.input),
        outputs=tuple(_spec(feature, request.outputs) for feature in description.output),
        not_quantized=left_in_float(model._mil_program, scheme.kind == "static") if counts else (),
        notes=tuple(notes),
        integer_ops=counts.integer if counts else None,
        float_ops=counts.real if counts else None,
    )


def _require_system(request: ExportRequest, scheme: Scheme) -> None:
    system = request.coreml_deployment_target
    if scheme.activation_bits == 16 and scheme.kind == "static":
        raise UsageError("Core ML quantizes activations to 8 bits only; use static_wi8_ai8")
    if scheme.kind == "static" and system == "iOS16":
        raise UsageError(f"Core ML runs {request.precision} from iOS17 on; the target asks for iOS16")
    if scheme.kind == "weight_only" and scheme.weight_bits == 4 and system != "iOS18":
        raise UsageError(
            f"Core ML reads {request.precision} from iOS18 on; the target asks for {system}:"
            " raise its coreml_deployment_target, or use palettized_w4"
        )


def _with_stored_weights(
    program: torch.export.ExportedProgram, request: ExportRequest, scheme: Scheme, notes: list[str]
) -> torch.export.ExportedProgram:
    """Return the program with its weights as integers; in a quantized graph they are already."""
    module = program.module()
    assert isinstance(module, GraphModule)
    rounded, faint = [], 0
    for weight in layer_weights(module, request.quantization.keep_float):
        integers = integers_of(weight, scheme.weight_bits, request.quantization.block_size)
        store_integers(module, weight, integers)
        faint += int((integers.scale < torch.finfo(torch.float16).smallest_normal).sum())
        if not integers.exact:
            rounded.append(weight.name)
    module.graph.eliminate_dead_code()
    module.recompile()
    if rounded:
        notes.append(f"{len(rounded)} weights lay on no integer grid and were rounded to the nearest: {rounded[0]}, …")
    if faint:
        notes.append(f"{faint} weight scales are smaller than a normal float16 number and lose accuracy in it")
    if scheme.kind == "dynamic":
        notes.append("weights are int8; Core ML computes in float, it has no dynamic int8 kernels")
    return torch.export.export(module, example_inputs(request.inputs))


def _convert(program: torch.export.ExportedProgram, request: ExportRequest, scheme: Scheme) -> Any:
    """Convert the program as whole as coremltools takes it."""
    half = scheme.weight_bits != 32
    options: dict[str, Any] = {
        "inputs": [_input_type(spec) for spec in request.inputs],
        "outputs": [
            ct.TensorType(name=s.name, dtype=np.float32 if "float" in s.dtype else None) for s in request.outputs
        ],
        "minimum_deployment_target": getattr(ct.target, request.coreml_deployment_target),
        # The Neural Engine runs float16 programs only, so every precision but fp32 computes in it.
        "compute_precision": ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        "skip_model_load": True,
    }
    if scheme.kind == "static":
        options["pass_pipeline"] = ct.PassPipeline()
        options["pass_pipeline"].remove_passes({SCALES_OF_SUMS})
    if scheme.kind == "palettized":
        options["pass_pipeline"] = palettizing_pipeline(scheme.weight_bits, request.coreml_deployment_target == "iOS18")
    forms = lowered_programs(program, whole=scheme.kind == "static", half=half)
    for last, lowered in forms:
        report("converting")
        try:
            return ct.convert(lowered, **options)
        except Exception:  # whatever it does not know in one form, it may know in the next
            if last:
                raise
    raise AssertionError("there is always a last form")


def _input_type(spec: TensorSpec) -> Any:
    dtype = np.int32 if spec.dtype in ("int64", "int32", "bool", "uint8") else np.float32
    return ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtype)


def _spec(feature: Any, sources: tuple[TensorSpec, ...]) -> TensorSpec:
    array = feature.type.multiArrayType
    source = next((s for s in sources if s.name == feature.name), None)
    shape = tuple(int(d) for d in array.shape) or (source.shape if source else ())
    return TensorSpec(feature.name, shape, DTYPES[array.dataType], source.layout if source else "")
