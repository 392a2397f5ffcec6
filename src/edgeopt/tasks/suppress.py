"""Turns a detector's stored outputs into what an artifact with suppression inside gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.detections import find
from edgeopt.core.arrays import array_file
from edgeopt.core.detection import COLUMNS, DETECTIONS, DetectionOptions
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.settings import parse
from edgeopt.tasks.detect import score


def suppress(
    *, outputs: list[dict[str, Any]], options: dict[str, Any], inputs_folder: str, outputs_folder: str, folder: str
) -> list[dict[str, Any]]:
    """Write `detections.npy` and what belongs to them to `folder`, and `metrics.json`; returns their specifications.

    Args:
        outputs: of the network: `boxes`, `scores` and others.
        options: of the suppression.
        inputs_folder: with `truth.json`, where it is known.
        outputs_folder: `<output>.npy` of shape (batches, *output shape).
        folder: to write to.
    """
    specs = {s["name"]: TensorSpec.from_json(s) for s in outputs}
    settled = parse(DetectionOptions, options, "detection")
    wanted = suppressed(tuple(specs.values()), settled)
    stored = {name: np.load(array_file(Path(outputs_folder), name), mmap_mode="r") for name in specs}
    count = len(stored["boxes"])
    out = Path(folder)
    out.mkdir()
    arrays = {
        s.name: np.lib.format.open_memmap(array_file(out, s.name), "w+", np.float32, (count, *s.shape)) for s in wanted
    }
    for index in range(count):
        raw = {name: np.asarray(array[index, 0]) for name, array in stored.items()}
        found = find(raw, settled)
        kept = len(found.scores)
        columns = (found.boxes, found.scores[:, None], found.classes[:, None])
        arrays[DETECTIONS][index, 0, :kept] = np.concatenate(columns, 1)
        for spec in wanted[1:]:
            if spec.shape == specs[spec.name].shape:
                arrays[spec.name][index] = stored[spec.name][index]
            else:
                arrays[spec.name][index, 0, :, :kept] = raw[spec.name][:, found.anchors]
    for array in arrays.values():
        array.flush()
    score(Path(inputs_folder), out, wanted)
    return [s.to_json() for s in wanted]


def suppressed(outputs: tuple[TensorSpec, ...], options: DetectionOptions) -> tuple[TensorSpec, ...]:
    """Return what a detector's outputs become: `detections` `[1, max_detections, 6]`, then the others."""
    anchors = next(s for s in outputs if s.name == "scores").shape[2]
    found = [TensorSpec(DETECTIONS, (1, options.max_detections, COLUMNS))]
    for spec in outputs:
        if spec.name in ("boxes", "scores"):
            continue
        each = len(spec.shape) == 3 and spec.shape[2] == anchors
        shape = (*spec.shape[:2], options.max_detections) if each else spec.shape
        found.append(TensorSpec(spec.name, shape, spec.dtype, spec.layout))
    return tuple(found)


def require_suppressible(outputs: tuple[TensorSpec, ...], options: DetectionOptions, source: str) -> None:
    """Refuse suppression behind outputs that are no detector's.

    Raises:
        UsageError: says what is missing.
    """
    shapes = {s.name: s.shape for s in outputs}
    if DETECTIONS in shapes:
        raise UsageError(f"{source}: its output detections needs no suppression; leave out --nms")
    if not {"boxes", "scores"} <= set(shapes):
        raise UsageError(f"{source}: suppression (--nms) takes outputs boxes and scores, not {', '.join(shapes)}")
    boxes, scores = shapes["boxes"], shapes["scores"]
    if boxes[:2] != (1, 4) or len(boxes) != 3 or len(scores) != 3 or (scores[0], scores[2]) != (1, boxes[2]):
        raise UsageError(
            f"{source}: suppression (--nms) takes boxes [1, 4, anchors] and scores [1, classes, anchors], not "
            f"{list(boxes)} and {list(scores)}"
        )
    if not options.confidence:
        raise UsageError(f"{source}: with --nms, confidence must be above 0: rows without an object have that score")
