"""LiteRT (TFLite) by litert-torch; int8 and fp16 by ai-edge-quantizer on that float model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe, recipe_manager

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.model import TensorSpec
from edgeopt.exporters.program import calibration_batches, example_inputs, load_program
from edgeopt.worker import report

TOOLS = ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
SIGNATURE = "serving_default"
COMPUTE = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D")

Ranges = dict[str, dict[str, Any]]


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
    with tempfile.TemporaryDirectory() as scratch:
        float_file = out if request.precision == "fp32" else Path(scratch, "float.tflite")
        _convert(request, float_file, nhwc)
        if request.precision == "static_wi8_ai8":
            assert request.calibration is not None
            batches = _calibration(request, nhwc)
            performer = quantizer.Quantizer(str(float_file), _static_recipe())
            _write(performer, out, _true_ranges(performer, batches))
        elif request.precision == "dynamic_wi8_afp32":
            _write(quantizer.Quantizer(str(float_file), recipe.dynamic_wi8_afp32()), out, None)
        elif request.precision == "fp16":
            _write(quantizer.Quantizer(str(float_file), _float16_recipe()), out, None)
    interpreter = Interpreter(model_content=out.read_bytes())
    runner = interpreter.get_signature_runner()
    return Export(
        inputs=_specs(runner.get_input_details(), request.inputs, nhwc),
        outputs=_specs(runner.get_output_details(), request.outputs, nhwc=False),
        not_quantized=left_in_float(interpreter) if "wi8" in request.precision else (),
        notes=("weights are stored in float16; CPU kernels compute in float32",) if request.precision == "fp16" else (),
    )


def left_in_float(interpreter: Interpreter) -> tuple[str, ...]:
    """Return compute layers whose weights stayed float, and the counts of other operators on float tensors."""
    dtypes = {t["index"]: np.dtype(t["dtype"]) for t in interpreter.get_tensor_details()}
    layers: list[str] = []
    others: Counter[str] = Counter()
    quantized_activations = any(
        dtypes[op["outputs"][0]] == np.int8 for op in interpreter._get_ops_details() if len(op["outputs"])
    )
    for op in interpreter._get_ops_details():
        name = op["op_name"]
        if name in COMPUTE:
            weight = op["inputs"][2] if name == "TRANSPOSE_CONV" else op["inputs"][1]
            if dtypes.get(weight) == np.float32:
                layers.append(f"{name} #{op['index']}: its weights are float")
        elif (
            quantized_activations
            and name not in ("QUANTIZE", "DEQUANTIZE", "DELEGATE")
            and any(dtypes.get(i) == np.float32 for i in op["outputs"])
        ):
            others[name] += 1
    return (*layers, *(f"{count} × {name}: computed in float" for name, count in sorted(others.items())))


def _convert(request: ExportRequest, out: Path, nhwc: bool) -> None:
    module = NamedSignature(load_program(request.program).module(), request.inputs, request.outputs, nhwc)
    examples: dict[str, torch.Tensor] = {}
    for spec, tensor in zip(request.inputs, example_inputs(request.inputs), strict=True):
        if nhwc and spec.layout == "NCHW":
            tensor = tensor.permute(0, 2, 3, 1).contiguous()
        examples[spec.name] = tensor.to(torch.int32) if spec.dtype == "int64" else tensor
    report("lowering")
    litert_torch.convert(module, sample_kwargs=examples).export(str(out))


def _calibration(request: ExportRequest, nhwc: bool) -> Iterator[dict[str, np.ndarray]]:
    assert request.calibration is not None
    layouts = {s.name: s.layout for s in request.inputs}
    for batch in calibration_batches(request.calibration, request.inputs):
        yield {
            name: np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if nhwc and layouts[name] == "NCHW" else array
            for name, array in batch.items()
        }


def _true_ranges(performer: quantizer.Quantizer, batches: Iterator[dict[str, np.ndarray]]) -> Ranges:
    """Return the smallest minimum and largest maximum of every tensor over all batches.

    The quantizer's own calibration keeps a moving average, which clips: 3 dB worse on EfficientNet-Lite0.
    """
    merged: Ranges = {}
    for count, batch in enumerate(batches, start=1):
        inputs = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in batch.items()}
        ranges = performer.calibrate({SIGNATURE: [inputs]})
        for name, found in ranges.items():
            known = merged.setdefault(name, dict(found))
            if "min" in found:
                known["min"] = np.minimum(known["min"], found["min"])
                known["max"] = np.maximum(known["max"], found["max"])
        report(f"calibrated {count}")
    return merged


def _static_recipe() -> Any:
    """Return static int8 with float inputs and outputs, so that every format is fed the same arrays."""
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    for boundary in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        manager.add_quantization_config(".*", boundary, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    return manager.get_quantization_recipe()


def _float16_recipe() -> Any:
    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


def _write(performer: quantizer.Quantizer, out: Path, ranges: Ranges | None) -> None:
    report("quantizing")
    result = performer.quantize(ranges) if ranges is not None else performer.quantize()
    out.write_bytes(result.quantized_model)


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
