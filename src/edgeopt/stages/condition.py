"""What happens to a float program before it is quantized, so that quantizing it loses little."""

from __future__ import annotations

import copy
import warnings

import torch
from torch.fx import GraphModule

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.correct_bias import correct_bias
from edgeopt.stages.equalize import equalize
from edgeopt.stages.fold_batch_norm import fold_batch_norm
from edgeopt.stages.layers import Layer
from edgeopt.stages.level_outputs import level_outputs
from edgeopt.stages.quantize import calibrate
from edgeopt.stages.quantizer import EdgeQuantizer
from edgeopt.stages.reconstruct_weights import reconstruct_weights
from edgeopt.stages.round_weights import Grid, grid_of, round_nearest, round_weights
from edgeopt.stages.smooth import smooth
from edgeopt.stages.split_channels import split_channels
from edgeopt.stages.still_channels import silence_still_channels
from edgeopt.stages.walk import Batches, walk
from edgeopt.worker import report


def condition(
    program: torch.export.ExportedProgram,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
    fitted_on: Batches | None = None,
) -> torch.export.ExportedProgram:
    """Return the program in float, with the weights of its layers on the integer grid of `scheme`.

    Batch normalization is folded, layers are equalized and smoothed, channels that stand still take over part of
    others, then layers are rounded in the order of execution, each on what those before it, already rounded, make of
    the calibration samples; for a static scheme their activations are quantized too, and channels that still stand
    still become constants. Layers that `options.keep_float` names are not rounded. The given program stays as it is.

    Args:
        program: in float, of fixed shapes.
        batches: opens the calibration samples, each call from the start.
        inputs: of the program, in order.
        scheme: what to prepare for.
        options: which steps are taken.
        fitted_on: opens the samples that weights and biases are fitted to; `batches` where None.
    """
    module = copy.deepcopy(program.module())
    assert isinstance(module, GraphModule)
    report("folding batch normalization")
    fold_batch_norm(module)
    prepared: GraphModule | None = None
    if scheme.kind == "static":
        if options.equalize:
            report("equalizing")
            equalize(module, batches, inputs)
            split_channels(module, batches, inputs)
        if options.smooth is not None:
            report("smoothing")
            smooth(module, batches, inputs, options.smooth)
            level_outputs(module, batches, inputs)
        quantizer = EdgeQuantizer.of(scheme, options)
        prepared = calibrate(copy.deepcopy(module), quantizer, batches, inputs)
    elif (scheme.kind == "dynamic" or scheme.weight_bits == 4) and options.smooth is not None:
        report("smoothing")
        smooth(module, batches, inputs, options.smooth)
    if scheme.kind in ("static", "dynamic", "weight_only"):
        _bring_to_grid(module, fitted_on or batches, inputs, prepared, scheme, options)
    report("exporting the conditioned program")
    examples = next(iter(batches()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        return torch.export.export(module, tuple(torch.from_numpy(examples[s.name]) for s in inputs))


def _bring_to_grid(
    module: GraphModule,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    prepared: GraphModule | None,
    scheme: Scheme,
    options: QuantizationOptions,
) -> None:
    def grid(layer: Layer) -> Grid | None:
        kept = layer.name in options.keep_float or layer.node.name in options.keep_float
        return None if kept else grid_of(layer, scheme, options)

    # The learned rounding changes `module`; the walk after it must still know the float weights.
    in_float = prepared if prepared is not None else copy.deepcopy(module)
    if options.rounding == "adaround":
        reconstruct_weights(module, batches, inputs, grid, in_float)
    rounded: set[str] = set()
    for arrival in walk(module, batches, inputs, in_float):
        layer, weight = arrival.layer, str(arrival.layer.weight_node.target)
        report(f"rounding {arrival.number} of {arrival.total}")
        found = grid(layer)
        if found is None or weight in rounded:
            continue
        rounded.add(weight)
        if prepared is not None:
            silence_still_channels(arrival)
        if options.rounding == "nearest" or layer.kind == "embedding":
            round_nearest(layer, found)
        elif options.rounding == "gptq":
            round_weights(arrival, found, centred=options.correct_bias)
        if options.correct_bias:
            correct_bias(arrival)
