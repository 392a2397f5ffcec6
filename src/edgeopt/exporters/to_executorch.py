"""ExecuTorch programs lowered to XNNPACK, weights and scales as the program has them."""

from __future__ import annotations

from pathlib import Path

import torch
from executorch.exir import EdgeProgramManager, ExecutorchProgramManager
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UnsupportedOpError, UsageError
from edgeopt.core.quantization import Scheme, scheme_of
from edgeopt.exporters.coreml_executorch_weights import integers_of, layer_weights
from edgeopt.exporters.executorch_half import half_program
from edgeopt.exporters.executorch_integers import (
    computes_dynamically,
    quantize_dynamically,
    store_embedding,
    store_embeddings_of_graph,
    store_linear,
)
from edgeopt.exporters.executorch_lowering import (
    float_layers,
    lower,
    portable_float_operators,
    portable_operators,
    refuse_missing_kernels,
    run_once,
)
from edgeopt.exporters.executorch_mixed import read_floats_only
from edgeopt.exporters.executorch_pads import absorb_pads
from edgeopt.exporters.executorch_payload import count_delegated, read_program
from edgeopt.exporters.program import example_inputs, load_program
from edgeopt.worker import report

TOOLS = ("torch", "executorch", "torchao")


def export(request: ExportRequest) -> Export:
    """Write `request.out`, one `.pte` file.

    Raises:
        UsageError: XNNPACK has no such precision.
        UnsupportedOpError: the runtime has no kernel for an operator.
        Exception: whatever the converter raises; the worker turns it into one line.
    """
    scheme = scheme_of(request.precision)
    _require(request.precision, scheme)
    notes: list[str] = []
    program, lowered, made = _make(request, scheme, notes)
    portable = portable_operators(lowered)
    Path(request.out).write_bytes(made.buffer)
    notes += [f"{count} × {op}: runs in a portable kernel, outside XNNPACK" for op, count in sorted(portable.items())]
    if scheme.kind == "float":
        return Export(request.inputs, request.outputs, (), tuple(notes))
    integer, real = count_delegated(read_program(Path(request.out)))
    return Export(
        request.inputs,
        request.outputs,
        float_layers(program),
        tuple(notes),
        integer_ops=integer,
        float_ops=real + portable_float_operators(lowered),
    )


def _make(
    request: ExportRequest, scheme: Scheme, notes: list[str]
) -> tuple[ExportedProgram, EdgeProgramManager, ExecutorchProgramManager]:
    """Lower the program; 1×1 convolutions of which ExecuTorch cannot do all in dynamic integers stay in float."""
    if scheme.kind != "dynamic":
        return _lower(request, scheme, notes, convolutions=True)
    told: list[str] = []
    try:
        made = _lower(request, scheme, told, convolutions=True)
        run_once(made[2], example_inputs(request.inputs))
    except UnsupportedOpError:
        raise
    except Exception as error:  # noqa: BLE001 - partitioner, passes and runtime raise many kinds
        made = _lower(request, scheme, notes, convolutions=False)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        notes.append(f"1×1 convolutions stay in float: with them in dynamic integers ExecuTorch fails: {reason}")
        return made
    notes += told
    return made


def _lower(
    request: ExportRequest, scheme: Scheme, notes: list[str], *, convolutions: bool
) -> tuple[ExportedProgram, EdgeProgramManager, ExecutorchProgramManager]:
    program = load_program(request.program)
    examples = example_inputs(request.inputs)
    if scheme.weight_bits == 16:
        program = half_program(program, examples)
    elif scheme.kind != "float":
        module = program.module()
        assert isinstance(module, GraphModule)
        _store_integers(module, request, scheme, notes, convolutions=convolutions)
        program = torch.export.export(module, examples)
    report("lowering")
    lowered = lower(program, weight_only=scheme.kind == "weight_only")
    made = lowered.to_executorch()
    refuse_missing_kernels(made)
    return program, lowered, made


def _require(precision: str, scheme: Scheme) -> None:
    if scheme.kind == "static" and scheme.activation_bits == 16:
        raise UsageError("ExecuTorch's XNNPACK quantizes activations to 8 bits only; use static_wi8_ai8")
    if scheme.kind == "weight_only" and scheme.weight_bits == 4:
        raise UsageError(
            f"ExecuTorch cannot do {precision}: XNNPACK multiplies block-wise 4-bit weights with dynamically quantized"
            " activations only; use weight_only_wi8_afp32"
        )
    if scheme.kind == "palettized":
        raise UsageError(f"ExecuTorch cannot do {precision}: XNNPACK has no weights that are indices into a table")


def _store_integers(
    module: GraphModule, request: ExportRequest, scheme: Scheme, notes: list[str], *, convolutions: bool
) -> None:
    """Put what the runtime has integer kernels for into integers; a quantized graph has them in its layers already."""
    rounded = []
    if scheme.kind == "static":
        store_embeddings_of_graph(module)
        absorb_pads(module)
        read_floats_only(module)
    else:
        for weight in layer_weights(module, request.quantization.keep_float):
            integers = integers_of(weight, 8)
            if weight.kind == "embedding":
                store_embedding(module, weight, integers)
            elif scheme.kind == "dynamic" and computes_dynamically(weight, convolutions=convolutions):
                quantize_dynamically(module, weight, integers)
            elif scheme.kind == "weight_only" and weight.kind == "linear":
                store_linear(module, weight, integers)
            else:
                continue
            if not integers.exact:
                rounded.append(weight.name)
    if rounded:
        notes.append(f"{len(rounded)} weights lay on no integer grid and were rounded to the nearest: {rounded[0]}, …")
    module.graph.eliminate_dead_code()
    module.recompile()
