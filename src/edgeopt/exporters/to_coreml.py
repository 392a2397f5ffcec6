"""Core ML ML Programs by coremltools, from the exported program."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import torch

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.exporters.program import load_program
from edgeopt.mil.integrity import seal
from edgeopt.worker import report

TOOLS = ("torch", "coremltools")
DTYPES = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32"}
CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default, torch.ops.aten.clamp.default)
LAYERS = ("conv", "conv_transpose", "linear", "matmul")


def export(request: ExportRequest) -> Export:
    """Write `request.out`, an `.mlpackage` folder.

    Raises:
        UsageError: static int8 for a system version before iOS 17.
        Exception: whatever the converter raises; the worker turns it into one line.
    """
    static = request.precision == "static_wi8_ai8"
    if static and request.coreml_deployment_target == "iOS16":
        raise UsageError("Core ML runs static_wi8_ai8 from iOS17 on; the target asks for iOS16")
    program = load_program(request.program)
    # The Neural Engine runs float16 programs only, so every precision but fp32 computes in it.
    precision = ct.precision.FLOAT32 if request.precision == "fp32" else ct.precision.FLOAT16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _convert(program, request, precision)
        if request.precision == "dynamic_wi8_afp32":
            report("quantizing")
            config = cto.OptimizationConfig(
                global_config=cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
            )
            model = cto.linear_quantize_weights(model, config)
    model.author = "edgeopt"
    model.save(request.out)
    seal(Path(request.out))
    notes = []
    if request.precision == "dynamic_wi8_afp32":
        notes.append("weights are int8; Core ML computes in float, it has no dynamic int8 kernels")
    description = model.get_spec().description
    return Export(
        inputs=tuple(_spec(feature, request.inputs) for feature in description.input),
        outputs=tuple(_spec(feature, request.outputs) for feature in description.output),
        not_quantized=left_in_float(model, static) if "wi8" in request.precision else (),
        notes=tuple(notes),
    )


def with_float_bounds(program: torch.export.ExportedProgram) -> None:
    """Write the integer bounds of clamps on floats as floats; coremltools refuses `hardtanh(x, 0, 6)`."""
    for node in program.graph.nodes:
        if node.target in CLAMPS and node.meta["val"].is_floating_point():
            node.args = (node.args[0], *(float(a) if isinstance(a, int) else a for a in node.args[1:]))


def _convert(program: torch.export.ExportedProgram, request: ExportRequest, precision: Any) -> Any:
    """Convert the program as whole as coremltools takes it.

    The default decompositions take apart what Core ML has whole (hard swish loses 16 dB in float16), but transformers
    need them; on a quantized graph they would split the layers between quantize and dequantize.
    """
    options = {
        "inputs": [_input_type(spec) for spec in request.inputs],
        "outputs": [
            ct.TensorType(name=s.name, dtype=np.float32 if "float" in s.dtype else None) for s in request.outputs
        ],
        "minimum_deployment_target": getattr(ct.target, request.coreml_deployment_target),
        "compute_precision": precision,
        "skip_model_load": True,
    }
    report("converting")
    try:
        return ct.convert(_prepared(program.run_decompositions({})), **options)
    except Exception:  # whatever it does not know in one form, it may know in the other
        if request.precision == "static_wi8_ai8":
            raise
    report("converting decomposed")
    return ct.convert(_prepared(program.run_decompositions()), **options)


def _prepared(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Take out `alias` nodes, which coremltools does not know, and give clamps float bounds."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    with_float_bounds(program)
    return program


def left_in_float(model: Any, activations: bool) -> tuple[str, ...]:
    """Return layers whose weights, or whose activations where asked, are not int8; with counts of other float ops."""
    layers: list[str] = []
    others: Counter[str] = Counter()
    program = model._mil_program
    for function in program.functions.values():
        for op in function.operations:
            if op.op_type in LAYERS:
                weight = op.inputs.get("weight") or op.inputs.get("y")
                if weight is not None and not _is_compressed(weight):
                    layers.append(f"{op.op_type} {op.name}: its weights are float")
                elif activations and not _comes_from(op.inputs["x"], "dequantize"):
                    layers.append(f"{op.op_type} {op.name}: its input is float")
            elif activations and op.op_type in ("softmax", "layer_norm", "batch_norm", "sigmoid", "gelu", "silu"):
                others[op.op_type] += 1
    return (*layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))


def _is_compressed(variable: Any) -> bool:
    return _comes_from(variable, "constexpr_") or _comes_from(variable, "dequantize")


def _comes_from(variable: Any, prefix: str) -> bool:
    return variable.op is not None and str(variable.op.op_type).startswith(prefix)


def _input_type(spec: TensorSpec) -> Any:
    dtype = np.int32 if spec.dtype in ("int64", "int32", "bool", "uint8") else np.float32
    return ct.TensorType(name=spec.name, shape=spec.shape, dtype=dtype)


def _spec(feature: Any, sources: tuple[TensorSpec, ...]) -> TensorSpec:
    array = feature.type.multiArrayType
    source = next((s for s in sources if s.name == feature.name), None)
    shape = tuple(int(d) for d in array.shape) or (source.shape if source else ())
    return TensorSpec(feature.name, shape, DTYPES[array.dataType], source.layout if source else "")
