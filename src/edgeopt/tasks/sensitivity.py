"""Measures what quantizing each unit of a stored program costs, and which units should stay in float."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from edgeopt.core.arrays import LABELS, array_file
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.exporters.program import calibration_batches, load_program
from edgeopt.stages.fake_quantized import FakeQuantized
from edgeopt.stages.judgement import Judge
from edgeopt.stages.mixed_precision import Tolerance, judged_on, search
from edgeopt.stages.sensitivity import sensitivity_of, stack
from edgeopt.stages.units import names_of_units
from edgeopt.worker import report


def sensitivity(
    *,
    program: str,
    inputs: list[dict[str, Any]],
    samples: str,
    precision: str,
    options: dict[str, Any],
    task: str,
    tolerance: dict[str, float] | None = None,
    held_out: str | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Return `sensitivity` and, where a tolerance is given, `choice`, as JSON types.

    Args:
        program: `.pt2` file in float.
        inputs: its specifications.
        samples: folder with `<input>.npy` and `labels.npy`, to calibrate, measure and search on.
        precision: a static, dynamic or weight-only one, or `auto`.
        options: of quantization.
        task: of the model.
        tolerance: what may be lost; None measures without searching.
        held_out: folder of samples to report on.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    chosen, original = QuantizationOptions(**options), load_program(program)
    if chosen.keep_float:
        module = original.module()
        assert isinstance(module, GraphModule)
        chosen = chosen.model_copy(update={"keep_float": names_of_units(module, chosen.keep_float)})
    network = FakeQuantized(original, scheme_of(precision), chosen)
    report("calibrating")
    chunks = stack(calibration_batches(samples, specs), specs, _labels(samples), network)
    network.calibrate(chunk.inputs for chunk in chunks)
    judge = Judge.of(network.graph, task, None)
    measured = sensitivity_of(network, chunks, judge)
    found: dict[str, Any] = {"sensitivity": measured.to_json(), "choice": None}
    if tolerance is not None:
        choice = search(network, chunks, judge, Tolerance(**tolerance), measured)
        if held_out is not None and (others := _batches(held_out, specs)):
            choice = judged_on(choice, network, stack(others, specs, _labels(held_out), network), judge)
        found["choice"] = choice.to_json()
    return found


def _batches(folder: str, specs: tuple[TensorSpec, ...]) -> list[dict[str, np.ndarray]]:
    found: Iterable[dict[str, np.ndarray]] = calibration_batches(folder, specs)
    return list(found) if array_file(folder, specs[0].name).exists() else []


def _labels(folder: str) -> list[int] | None:
    path = Path(folder, f"{LABELS}.npy")
    return [int(v) for v in np.load(path)] if path.exists() else None
