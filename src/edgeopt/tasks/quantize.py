"""Makes the conditioned float program and, for static precisions, the one quantized graph that formats lower."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from edgeopt import plugins
from edgeopt.core.arrays import LABELS
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme, scheme_of
from edgeopt.exporters.program import calibration_batches, example_inputs, load_program
from edgeopt.stages.condition import condition
from edgeopt.stages.fake_quantized import FakeQuantized
from edgeopt.stages.judgement import Judge
from edgeopt.stages.mirrored import with_mirrored
from edgeopt.stages.mixed_precision import Choice, Tolerance, score_of, search
from edgeopt.stages.quantize import quantize as quantize_program
from edgeopt.stages.sensitivity import stack
from edgeopt.stages.settle_biases import with_biases
from edgeopt.stages.softmax_means import softmax_means
from edgeopt.stages.train_quantized import TrainingOptions, train_quantized
from edgeopt.stages.units import names_of_units
from edgeopt.stages.walk import Batches
from edgeopt.worker import report

Program = torch.export.ExportedProgram
Specs = tuple[TensorSpec, ...]


def quantize(
    *,
    program: str,
    inputs: list[dict[str, Any]],
    task: str,
    calibration: str | None,
    out: str,
    precision: str,
    options: dict[str, Any],
    threads: int = 1,
) -> dict[str, Any]:
    """Read a float program and write what the exporters of a precision start from into the folder `out`.

    Files:
        conditioned.pt2: float, its weights on the precision's integer grid; static: its biases too.
        quantized.pt2: static precisions only; the same with quantize and dequantize operators.
        ranges.json: static precisions only; `{"activations": {node of conditioned.pt2: [min, max]}}`.

    Returns the record for the manifest: `keep_float`, names of the layers left in float; `options`; `weight_bits` that
    the integers use; `search`, what `auto` found, or None; `training`, losses of training with quantization in the
    loop, or None; `seconds`.

    Args:
        program: path of the float program.
        inputs: its specifications.
        task: of the model; decides whether there are classes.
        calibration: folder with `<input>.npy` of shape (batches, *input shape); None where there is no data, which
            precisions without calibrated ranges do with: their weights are then rounded to the nearest.
        out: a folder; it is made where it is missing.
        precision: one that needs quantizing.
        options: fields of `QuantizationOptions`.
        threads: that PyTorch may use.

    Raises:
        ConversionError: the model has nothing that can be quantized.
        MissingBackendError: the backend asked for is not installed.
        UsageError: options that do not go together, or a name in `keep_float` that means no layer.
    """
    started = time.monotonic()
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    chosen = QuantizationOptions(**options)
    scheme = scheme_of(precision)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        if calibration is not None:
            return calibration_batches(calibration, specs)
        examples = example_inputs(specs)
        return iter([{s.name: tensor.numpy() for s, tensor in zip(specs, examples, strict=True)}])

    if calibration is None:
        if chosen.qat_steps:
            raise UsageError("qat_steps trains on samples: give --data")
        chosen = chosen.model_copy(update={"rounding": "nearest", "correct_bias": False})
    original = load_program(program)
    module = original.module()
    assert isinstance(module, GraphModule)
    kept = (*names_of_units(module, chosen.keep_float), *softmax_means(module))
    chosen = chosen.model_copy(update={"keep_float": tuple(dict.fromkeys(kept))})
    labels = _labels(calibration)
    record: dict[str, Any] = {"search": None, "training": None}
    if chosen.backend == "neural-compressor":
        if precision == "auto" or chosen.qat_steps:
            raise UsageError("the neural-compressor backend has neither auto nor qat_steps; use edgeopt's own")
        conditioned, quantized = _by_neural_compressor(original, batches, specs, scheme, chosen)
    else:
        if chosen.qat_steps:
            record["training"], original = _train(original, batches, specs, scheme, chosen, labels, task)
            # Its weights lie on their grid: moving scale between layers or rounding again would undo the training.
            trained = {"equalize": False, "smooth": None, "rounding": "nearest", "correct_bias": False}
            chosen = chosen.model_copy(update=trained)
        fitted_on = with_mirrored(batches, specs, task) if chosen.mirror and calibration is not None else batches
        conditioned = condition(original, batches, specs, scheme, chosen, fitted_on)
        if precision == "auto":
            choice = _search(original, conditioned, batches, specs, scheme, chosen, labels, task)
            record["search"] = choice.to_json()
            if choice.keep_float:
                chosen = chosen.model_copy(
                    update={"keep_float": tuple(dict.fromkeys((*chosen.keep_float, *choice.keep_float)))}
                )
                conditioned = condition(original, batches, specs, scheme, chosen, fitted_on)
        quantized = None
        if scheme.kind == "static":
            report("calibrating")
            made = quantize_program(conditioned, batches, specs, scheme, chosen)
            quantized = made.program, made.ranges
            with_biases(conditioned, made.biases)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(conditioned, folder / "conditioned.pt2")
    if quantized is not None:
        torch.export.save(quantized[0], folder / "quantized.pt2")
        (folder / "ranges.json").write_text(json.dumps({"activations": quantized[1]}, indent=1))
    return record | {
        "keep_float": list(chosen.keep_float),
        "options": chosen.model_dump(mode="json", exclude={"keep_float"}),
        "weight_bits": scheme.weight_bits - (1 if chosen.reduce_range and scheme.weight_bits == 8 else 0),
        "seconds": round(time.monotonic() - started, 2),
    }


def _search(
    original: Program,
    conditioned: Program,
    batches: Batches,
    specs: Specs,
    scheme: Scheme,
    options: QuantizationOptions,
    labels: list[int] | None,
    task: str,
) -> Choice:
    """Return the layers to keep in float: none where conditioning alone keeps the accuracy."""
    network = FakeQuantized(original, scheme, options)
    chunks = stack(batches(), specs, labels, network)
    network.calibrate(chunk.inputs for chunk in chunks)
    judge = Judge.of(network.graph, task, None)
    tolerance = Tolerance(options.max_drop, 1 - options.max_drop, options.min_snr_db)
    ready = FakeQuantized(conditioned, scheme, options)
    ready.calibrate(chunk.inputs for chunk in chunks)
    before, after = score_of(ready, network, chunks, judge)
    if tolerance.allows(before, after):
        return Choice((), (), before, after, after, True, 0.0, 0.0)
    return search(network, chunks, judge, tolerance)


def _train(
    original: Program,
    batches: Batches,
    specs: Specs,
    scheme: Scheme,
    options: QuantizationOptions,
    labels: list[int] | None,
    task: str,
) -> tuple[dict[str, Any], Program]:
    samples = list(batches())
    arrays = {s.name: np.stack([sample[s.name] for sample in samples]) for s in specs}
    training = TrainingOptions(steps=options.qat_steps)
    trained = train_quantized(original, arrays, specs, scheme, options, training, labels, task=task)
    told = {name: getattr(trained, name) for name in ("loss_before", "loss_after", "steps", "seconds")}
    return told, trained.program


def _by_neural_compressor(
    original: Program, batches: Batches, specs: Specs, scheme: Scheme, options: QuantizationOptions
) -> tuple[Program, tuple[Program, dict[str, tuple[float, float]]] | None]:
    try:
        from edgeopt.stages.neural_compressor import condition_with_neural_compressor, quantize_with_neural_compressor
    except ModuleNotFoundError as error:
        raise plugins.missing_backend(error) from error
    conditioned = condition_with_neural_compressor(original, batches, specs, scheme, options)
    if scheme.kind != "static":
        return conditioned, None
    made = quantize_with_neural_compressor(conditioned, batches, specs, scheme, options)
    return conditioned, (made.program, made.ranges)


def _labels(calibration: str | None) -> list[int] | None:
    path = None if calibration is None else Path(calibration, f"{LABELS}.npy")
    return [int(v) for v in np.load(path)] if path is not None and path.exists() else None
