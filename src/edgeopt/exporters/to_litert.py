"""LiteRT (TFLite) by litert-torch; integers and fp16 by ai-edge-quantizer on that float model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from torch.fx import GraphModule

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import scheme_of
from edgeopt.exporters import litert_ranges, litert_recipe
from edgeopt.exporters.kept_layers import kept_nodes, kept_weights
from edgeopt.exporters.litert_expands import leave_broadcasting_to_operators
from edgeopt.exporters.litert_fusion import kernels_of
from edgeopt.exporters.litert_graph import LitertGraph
from edgeopt.exporters.program import calibration_batches, example_inputs, load_program
from edgeopt.worker import report

TOOLS = ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
SAMPLES_TO_MATCH = 2


class NamedSignature(torch.nn.Module):
    """Gives a module the input and output names of its signature; int32 inputs are widened inside.

    LiteRT runtimes refuse int64 inputs, so the artifact takes int32 where the program takes int64.
    """

    def __init__(
        self, module: torch.nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], nhwc: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs
        self.outputs = outputs
        self.nhwc = nhwc
        self.training = False  # eval() would descend into the program's module, which refuses it

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call the module with its inputs in order."""
        ordered = []
        for spec in self.inputs:
            tensor = tensors[spec.name]
            if self.nhwc and spec.layout == "NCHW":
                tensor = tensor.permute(0, 3, 1, 2)
            ordered.append(tensor.to(torch.int64) if spec.dtype == "int64" else tensor)
        result = self.module(*ordered)
        flat, _ = torch.utils._pytree.tree_flatten(result)
        return {spec.name: tensor for spec, tensor in zip(self.outputs, flat, strict=True)}


def export(request: ExportRequest) -> Export:
    """Write `request.out`, one `.tflite` file.

    Raises:
        Exception: whatever the converter raises; the worker turns it into one line.
    """
    out = Path(request.out)
    nhwc = request.layout == "NHWC"
    scheme = scheme_of(request.precision)
    program = load_program(request.program)
    with tempfile.TemporaryDirectory() as scratch:
        float_file = Path(scratch, "float.tflite")
        _convert(program, request, float_file, nhwc)
        graph = LitertGraph(float_file.read_bytes())
    graph.rename(_boundary_names(graph))
    notes: list[str] = []
    if request.precision == "fp32":
        content = graph.to_bytes()
    elif request.precision == "fp16":
        content = _quantized(graph, litert_recipe.float16())
        notes.append("weights are stored in float16; CPU kernels compute in float32")
    elif scheme.kind == "static":
        content = _static(graph, program, request, scheme.activation_bits, notes)
    else:
        module = program.module()
        assert isinstance(module, GraphModule)
        kept = litert_recipe.operators_with(graph, kept_weights(module, request.quantization.keep_float))
        if scheme.kind == "dynamic":
            content = _quantized(graph, litert_recipe.dynamic(graph, kept))
        else:
            block = request.quantization.block_size
            content = _quantized(graph, litert_recipe.weight_only(graph, scheme.weight_bits, block, kept))
            if scheme.weight_bits == 4:
                notes.append(
                    "linear layers with block-wise scales quantize their activations at each call, and their scales "
                    "have bfloat16's precision: LiteRT has no other kernel for them"
                )
    out.write_bytes(content)
    made = LitertGraph(content)
    kernels = kernels_of(made)
    runner = Interpreter(model_content=content).get_signature_runner()
    quantized = scheme.kind != "float"
    return Export(
        inputs=_specs(runner.get_input_details(), request.inputs, nhwc),
        outputs=_specs(runner.get_output_details(), request.outputs, nhwc=False),
        not_quantized=kernels.in_float if quantized else (),
        notes=tuple(notes),
        integer_ops=kernels.integer_ops if quantized else None,
        float_ops=kernels.float_ops if quantized else None,
    )


def _static(
    graph: LitertGraph,
    program: torch.export.ExportedProgram,
    request: ExportRequest,
    activation_bits: int,
    notes: list[str],
) -> bytes:
    """Return the model with the activations of the program's ranges in integers."""
    assert request.calibration is not None and request.ranges is not None
    module = program.module()
    assert isinstance(module, GraphModule)
    known = {n: (float(a), float(b)) for n, (a, b) in _activations(Path(request.ranges)).items()}
    kept = kept_nodes(module, request.quantization.keep_float)
    report("finding the tensors of the ranges")
    placed = litert_ranges.place(graph, graph.to_bytes(), module, known, kept, _samples(request))
    in_float = litert_ranges.operators_in_float(graph, placed, kept)
    tables = litert_recipe.operators_with(graph, kept_weights(module, request.quantization.keep_float))
    in_float = [op for op in in_float if op.kind != "EMBEDDING_LOOKUP"] + tables
    if placed.estimated:
        notes.append(f"{len(placed.estimated)} tensors between layers have the range of {SAMPLES_TO_MATCH} samples")
    graph.rename(placed.names | _boundary_names(graph))
    if activation_bits == 8 and (widened := litert_ranges.make_room_for_biases(graph, placed)):
        name, most = max(widened.items(), key=lambda item: item[1])
        notes.append(
            f"{len(widened)} tensors have a wider range so that biases fit 32 bits, and so many bits less: "
            f"{name} {most:.1f} times as wide"
        )
    ranges = {
        graph.name(i): {
            "min": np.float32(low).reshape(_ones(graph, i)),
            "max": np.float32(high).reshape(_ones(graph, i)),
        }
        for i, (low, high) in placed.ranges.items()
    }
    made = LitertGraph(_quantized(graph, litert_recipe.static(activation_bits, graph, in_float), ranges))
    litert_ranges.rescale_constant_channels(made, graph)
    return made.to_bytes()


def _convert(program: torch.export.ExportedProgram, request: ExportRequest, out: Path, nhwc: bool) -> None:
    whole = program.module()
    assert isinstance(whole, GraphModule)
    module = NamedSignature(leave_broadcasting_to_operators(whole), request.inputs, request.outputs, nhwc)
    examples: dict[str, torch.Tensor] = {}
    for spec, tensor in zip(request.inputs, example_inputs(request.inputs), strict=True):
        if nhwc and spec.layout == "NCHW":
            tensor = tensor.permute(0, 2, 3, 1).contiguous()
        examples[spec.name] = tensor.to(torch.int32) if spec.dtype == "int64" else tensor
    report("lowering")
    litert_torch.convert(module, sample_kwargs=examples).export(str(out))


def _activations(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))["activations"]
    return found


def _samples(request: ExportRequest) -> Iterator[tuple[tuple[torch.Tensor, ...], dict[str, np.ndarray]]]:
    """Yield the first calibration samples as the program and as the model's signature take them."""
    assert request.calibration is not None
    batches = calibration_batches(request.calibration, request.inputs)
    for batch, _ in zip(batches, range(SAMPLES_TO_MATCH), strict=False):
        fed = {}
        for spec in request.inputs:
            array = batch[spec.name]
            if request.layout == "NHWC" and spec.layout == "NCHW":
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            fed[spec.name] = array.astype(np.int32) if array.dtype == np.int64 else array
        yield tuple(torch.from_numpy(batch[s.name]) for s in request.inputs), fed


def _boundary_names(graph: LitertGraph) -> dict[int, str]:
    """Return names for the graph's inputs and outputs: those of the signature."""
    names: dict[int, str] = {}
    for signature in graph.model.signatureDefs[:1]:
        for entry in (*signature.outputs, *signature.inputs):
            names[int(entry.tensorIndex)] = entry.name.decode()
    return names


def _ones(graph: LitertGraph, index: int) -> tuple[int, ...]:
    return (1,) * len(graph.tensors[index].shape)


def _quantized(graph: LitertGraph, recipe: Any, ranges: dict[str, Any] | None = None) -> bytes:
    report("quantizing")
    performer = quantizer.Quantizer(graph.to_bytes(), recipe)
    return bytes(performer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False).quantized_model)


def _specs(details: dict[str, dict[str, Any]], sources: tuple[TensorSpec, ...], nhwc: bool) -> tuple[TensorSpec, ...]:
    """Return the artifact's tensors in the model's order."""
    specs = []
    for source in sources:
        detail = details[source.name]
        specs.append(
            TensorSpec(
                source.name,
                tuple(int(d) for d in detail["shape"]),
                np.dtype(detail["dtype"]).name,
                "NHWC" if nhwc and source.layout == "NCHW" else source.layout,
            )
        )
    return tuple(specs)
