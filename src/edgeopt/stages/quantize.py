"""Static quantization: one PT2E graph, calibrated once, that ONNX, Core ML and ExecuTorch all lower."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.exact_sums import align_sums
from edgeopt.stages.observers import RangeObserver
from edgeopt.stages.quantizer import EdgeQuantizer
from edgeopt.stages.settle_biases import settle_biases
from edgeopt.worker import report

Batches = Callable[[], Iterator[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Quantized:
    """What quantizing gave.

    Attributes:
        program: with quantize and dequantize operators and int8 weights.
        ranges: smallest and largest number that the integers of each quantized activation stand for, by the name of
            the node in the float program that computes it.
        biases: of the float program's layers, rounded to what every format stores; by the constants' names.
    """

    program: torch.export.ExportedProgram
    ranges: dict[str, tuple[float, float]]
    biases: dict[str, torch.Tensor] = field(default_factory=dict)


def quantize(
    program: torch.export.ExportedProgram,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
) -> Quantized:
    """Return the program with quantize/dequantize operators, int8 weights and calibrated activations.

    Requires a float program. Ensures that its inputs and outputs keep their shapes and float dtype.

    Args:
        program: in float, weights on the grid or not.
        batches: opens the calibration samples.
        inputs: of the program, in order.
        scheme: a static one.
        options: estimator and layers to keep in float.

    Raises:
        ConversionError: the graph has nothing that can be quantized, or there is no calibration sample.

    Before: `conv(x, w)`. After: `conv(dq(q(x)), dq(w_int8))`.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    quantizer = EdgeQuantizer.of(scheme, options)
    prepared = calibrate(module, quantizer, batches, inputs)
    biases: dict[str, torch.Tensor] = {}
    if scheme.activation_bits == 8:
        align_sums(prepared)
        biases = settle_biases(prepared)
    ranges = ranges_of(prepared)
    examples = tuple(torch.from_numpy(next(iter(batches()))[s.name]) for s in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own deprecations
        quantized = torch.export.export(convert_pt2e(prepared), examples)
    if not any("quantized_decomposed" in str(node.target) for node in quantized.graph.nodes):
        raise ConversionError("static int8: the model has no layer that can be quantized")
    return Quantized(quantized, ranges, biases)


def calibrate(
    module: GraphModule, quantizer: EdgeQuantizer, batches: Batches, inputs: tuple[TensorSpec, ...]
) -> GraphModule:
    """Return the module, which is changed in place, with observers that have seen all samples.

    Raises:
        ConversionError: there is no sample.
    """
    count = 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torchao's own deprecations
        prepared = prepare_pt2e(module, quantizer)
        for count, batch in enumerate(batches(), start=1):
            prepared(*(torch.from_numpy(batch[s.name]) for s in inputs))
            report(f"calibrating {count}")
    if count == 0:
        raise ConversionError("static quantization is calibrated on real inputs, and the data holds none")
    assert isinstance(prepared, GraphModule)
    return prepared


def ranges_of(prepared: GraphModule) -> dict[str, tuple[float, float]]:
    """Return what each observed activation's integers cover, by the name of the node that computes it."""
    found: dict[str, tuple[float, float]] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            observer = prepared.get_submodule(str(node.target))
            if isinstance(observer, RangeObserver):
                found.setdefault(_observed(node, prepared).name, observer.covered())
    return found


def _observed(node: Node, prepared: GraphModule) -> Node:
    source = node.args[0]
    assert isinstance(source, Node)
    if source.op == "call_module" and isinstance(prepared.get_submodule(str(source.target)), RangeObserver):
        return _observed(source, prepared)
    return source
