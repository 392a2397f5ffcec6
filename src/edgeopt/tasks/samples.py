"""Chooses inputs to calibrate and verify on, and keeps them on disk, one array per input and batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core.arrays import array_file
from edgeopt.core.errors import UsageError
from edgeopt.core.model import Model, TensorSpec
from edgeopt.data import is_builtin, open_data
from edgeopt.data.source import DataSource, Sample
from edgeopt.worker import report

TRUTH = "truth.json"


@dataclass(frozen=True)
class Choice:
    """Samples in the order chosen; `read(i)` decodes one."""

    indices: Sequence[int]
    read: Callable[[int], Sample]


def choose(
    model: Model, data: str | None, base: Path, samples: int, calibration_samples: int, must_calibrate: bool = False
) -> tuple[Choice, Choice | None, dict[str, Any]]:
    """Return what to verify on, what to calibrate on, and a record of where both came from.

    With `data`, or a card with one data source, calibration takes the first samples of a seeded permutation and
    verification those after them; only a source too small for both is used twice, which the record says.

    Without data, a model with a tokenizer is verified on the built-in sentences, any other on seeded noise.

    Raises:
        UsageError: no data, where calibration is a must.
    """
    evaluation_name = data or model.card.data.eval
    calibration_name = data or model.card.data.calibration or model.card.data.eval
    if evaluation_name is None:
        if must_calibrate:
            raise UsageError("static int8 is calibrated on real inputs: give --data FILE, or data in the model's card")
        if model.card.preprocess.tokenizer and all(len(s.shape) == 2 for s in model.inputs):
            return choose(model, "sentences", base, samples, 0)
        noise = Choice(range(samples), lambda i: _noise(model.inputs, i))
        return noise, None, {"inputs": "random", "verified": samples, "calibrated": 0, "source": None}
    evaluation = open_data(_from_here(evaluation_name, data), model.card, model.inputs, base)
    order = np.random.default_rng(0).permutation(len(evaluation))
    record: dict[str, Any] = {"inputs": "data", "source": evaluation_name, "fingerprint": evaluation.fingerprint()}
    calibration: Choice | None = None
    start = 0
    if calibration_samples and calibration_name is not None:
        record["calibration_source"] = calibration_name
        if calibration_name == evaluation_name:
            calibration = Choice(order[:calibration_samples].tolist(), evaluation.__getitem__)
            start = len(calibration.indices)
            if start >= len(evaluation):
                start = 0
                record["note"] = "verified on samples that also calibrated: the data holds too few for both"
        else:
            calibration = _from(open_data(calibration_name, model.card, model.inputs, base), calibration_samples)
    chosen = Choice(order[start : start + samples].tolist(), evaluation.__getitem__)
    record |= {"verified": len(chosen.indices), "calibrated": len(calibration.indices) if calibration else 0}
    return chosen, calibration, record


def store_inputs(choice: Choice, inputs: tuple[TensorSpec, ...], folder: Path) -> bool:
    """Write `<input>.npy` of shape (batches, *input shape), `labels.npy` and `samples.json`.

    Returns whether all are labelled. `samples.json` has what tells each sample to people: its id, its slices, its text.

    Where the data tells the objects in each image, they are written to `truth.json`.

    Samples are grouped by the model's batch size; the last batch is filled by repeating its last sample.

    Raises:
        UsageError: several samples a batch, and an input whose first dimension is not that batch.
    """
    batch = inputs[0].shape[0]
    for spec in inputs:
        if batch > 1 and spec.shape[:1] != (batch,):
            raise UsageError(
                f"input {spec.name} has shape {list(spec.shape)} where {inputs[0].name} has a batch of {batch}: "
                "give --input-shape with a batch of 1"
            )
    folder.mkdir()
    count = -(-len(choice.indices) // batch)
    arrays = {
        s.name: np.lib.format.open_memmap(array_file(folder, s.name), "w+", np.dtype(s.dtype), (count, *s.shape))
        for s in inputs
    }
    labels = np.full(count * batch, -1, np.int64)
    told: list[dict[str, Any]] = []
    truths: list[dict[str, Any] | None] = []
    sample: Sample | None = None
    for position in range(count * batch):
        if position < len(choice.indices):
            sample = choice.read(choice.indices[position])
            labels[position] = -1 if sample.label is None else sample.label
            told.append({"id": sample.id, "slices": sample.slices, "text": sample.text})
            truths.append(sample.truth.to_json() if sample.truth else None)
            if position % 16 == 0:
                report(f"reading inputs {position}/{len(choice.indices)}")
        assert sample is not None
        for spec in inputs:
            arrays[spec.name][position // batch, position % batch] = sample.inputs[spec.name]
    for array in arrays.values():
        array.flush()
    labels = labels[: len(choice.indices)]
    np.save(folder / "labels.npy", labels)
    (folder / "samples.json").write_text(json.dumps(told), encoding="utf-8")
    if all(truths):
        (folder / TRUTH).write_text(json.dumps(truths))
    return bool((labels >= 0).all()) or all(truths)


def _from_here(name: str, asked_for: str | None) -> str:
    """Make a path given on the command line absolute; one of the card starts at the card's folder."""
    return str(Path(name).resolve()) if asked_for and not is_builtin(name) else name


def _from(source: DataSource, count: int) -> Choice:
    order = np.random.default_rng(0).permutation(len(source))
    return Choice(order[:count].tolist(), source.__getitem__)


def _noise(inputs: tuple[TensorSpec, ...], index: int) -> Sample:
    """Return seeded inputs: standard normal floats, small non-negative integers."""
    generator = np.random.default_rng(index)
    arrays = {}
    for spec in inputs:
        shape = spec.shape[1:]
        if spec.dtype.startswith("float"):
            arrays[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            arrays[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return Sample(arrays, None, f"noise {index}")
