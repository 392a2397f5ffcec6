"""ExecuTorch programs lowered to XNNPACK; dynamic int8 by its own quantizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, ExecutorchProgramManager, to_edge_transform_and_lower
from executorch.exir.backend.utils import get_delegates, get_non_lowered_nodes
from executorch.runtime import Runtime
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UnsupportedOpError
from edgeopt.exporters.program import HalfPrecision, calibration_batches, example_inputs, load_program
from edgeopt.worker import report

TOOLS = ("torch", "executorch", "torchao")
LAYERS = ("conv", "linear", "addmm", "mm", "bmm")


def export(request: ExportRequest) -> Export:
    """Write `request.out`, one `.pte` file.

    Raises:
        UnsupportedOpError: the runtime has no kernel for an operator.
        Exception: whatever the converter raises; the worker turns it into one line.
    """
    program = load_program(request.program)
    examples = example_inputs(request.inputs)
    not_quantized: tuple[str, ...] = ()
    if request.precision == "fp16":
        program = torch.export.export(HalfPrecision(program.module()), examples)
    elif request.precision == "dynamic_wi8_afp32":
        program = _quantize_dynamically(request, program, examples)
        not_quantized = float_layers(program)
    elif request.precision == "static_wi8_ai8":
        not_quantized = float_layers(program)
    report("lowering")
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    )
    portable = portable_operators(lowered)
    made = lowered.to_executorch()
    _refuse_missing_kernels(made)
    Path(request.out).write_bytes(made.buffer)
    notes = [f"{count} × {op}: runs in a portable kernel, outside XNNPACK" for op, count in sorted(portable.items())]
    return Export(request.inputs, request.outputs, not_quantized, tuple(notes))


def _refuse_missing_kernels(made: ExecutorchProgramManager) -> None:
    """Raise for what the converter writes and the runtime cannot load: its own error does not name the operator."""
    known = set(Runtime.get().operator_registry.operator_names)
    for plan in made.executorch_program.execution_plan:
        for operator in plan.operators:
            name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            if name not in known:
                advice = "ExecuTorch has no kernel for it; compute it outside the model or replace it"
                raise UnsupportedOpError(name, plan.name, advice)


def float_layers(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Return the convolutions and linear layers of a quantized program whose weights are float."""
    left = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(f".{layer}" in str(node.target) for layer in LAYERS):
            continue
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, torch.fx.Node) and "dequantize" not in str(weight.target):
            left.append(f"{node.target} {node.name}: XNNPACK computes it in float")
    return tuple(left)


def portable_operators(lowered: EdgeProgramManager) -> Counter[str]:
    """Count the operators that were not delegated; views and casts between delegates are among them."""
    module = lowered.exported_program().graph_module
    assert get_delegates(module.graph) is not None
    counts: Counter[str] = Counter()
    for node in get_non_lowered_nodes(module.graph):
        name = str(getattr(node.target, "__name__", node.target))
        if "getitem" not in name:
            counts[name] += 1
    return counts


def _quantize_dynamically(
    request: ExportRequest, program: torch.export.ExportedProgram, examples: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    quantizer.set_filter_function(_is_no_spatial_convolution)
    prepared = prepare_pt2e(program.module(), quantizer)
    if request.calibration is not None:
        first = next(calibration_batches(request.calibration, request.inputs))
        prepared(*(torch.from_numpy(first[s.name]) for s in request.inputs))
    else:
        prepared(*examples)
    return torch.export.export(convert_pt2e(prepared), examples)


def _is_no_spatial_convolution(node: torch.fx.Node) -> bool:
    """Keep dynamic int8 to linear layers and 1×1 convolutions.

    ExecuTorch 1.4 gives wrong numbers, or fails to execute, for a dynamically quantized strided convolution behind a
    pad: EfficientNet-Lite0's first layer alone took the whole net from 19.8 dB in simulation to −3.4 dB.
    """
    if node.op != "call_function" or ".conv" not in str(node.target):
        return True
    weight = node.args[1]
    assert isinstance(weight, torch.fx.Node)
    return all(size == 1 for size in weight.meta["val"].shape[2:])
