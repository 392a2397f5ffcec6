"""What a detector's app needs behind the artifact: the suppression as code, and cases to hold an app's own against."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.detections import find, overlaps
from edgeopt.bundle import postprocess
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.model import TensorSpec

POSTPROCESS = "postprocess.py"
POSTPROCESS_VECTORS = "postprocess_test_vectors.json"
ANCHORS = 24
UNEVEN = 5 / 16
"""Keeps scores off the round numbers that people choose for `confidence`."""
LESS, MORE = 0.3, 0.9


@dataclass(frozen=True)
class _Vector:
    name: str
    options: DetectionOptions
    outputs: dict[str, np.ndarray]


def keep_postprocess(outputs: tuple[TensorSpec, ...], options: DetectionOptions, folder: Path) -> dict[str, str] | None:
    """Write `postprocess.py` and `postprocess_test_vectors.json` to `folder`; returns their names for the manifest.

    Args:
        outputs: of the model; nothing is written, and None returned, unless they are a detector's.
        options: of its card.
        folder: made if needed.
    """
    names = {s.name for s in outputs}
    if not ({"boxes", "scores"} <= names or "detections" in names):
        return None
    folder.mkdir(exist_ok=True)
    shutil.copyfile(Path(postprocess.__file__), folder / POSTPROCESS)
    vectors = _rows(options) if "detections" in names else _anchors(options, outputs)
    document = {
        "code": POSTPROCESS,
        "options": options.model_dump(mode="json"),
        "vectors": [_with_answer(vector) for vector in vectors],
    }
    (folder / POSTPROCESS_VECTORS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return {"code": POSTPROCESS, "test_vectors": POSTPROCESS_VECTORS}


def _anchors(options: DetectionOptions, outputs: tuple[TensorSpec, ...]) -> list[_Vector]:
    """Return boxes that crowd one another, for the card's options and for each option at another value."""
    classes = min(4, next(s for s in outputs if s.name == "scores").shape[1])
    chance = np.random.default_rng(0)
    boxes = _boxes(chance, (options.iou, LESS, MORE))
    # Each score once, a multiple of 1/2048: nothing ties, and every port gives the same numbers.
    scores = (chance.permutation(classes * ANCHORS).reshape(classes, ANCHORS) + UNEVEN) / 128
    crowd = {"boxes": boxes, "scores": scores.astype(np.float32)}
    changed: dict[str, dict[str, Any]] = {
        "the card's options": {},
        "boxes may overlap less": {"iou": LESS, "confidence": 0.1},
        "boxes may overlap more": {"iou": MORE, "confidence": 0.1},
        "classes suppress each other": {"class_agnostic": True, "iou": LESS, "confidence": 0.1},
        "three at most": {"max_detections": 3, "confidence": 0.1},
        "nothing is sure enough": {"confidence": 1.0},
    }
    vectors = [_Vector(n, options.model_copy(update=c), crowd) for n, c in changed.items()]
    flat = np.array([[4, 4, 4, 4], [4, 4, 4, 4], [9, 9, 2, 2], [0, 0, 8, 8]], np.float32).T
    sure = np.zeros((classes, 4), np.float32)
    sure[0] = (0.875, 0.75, 0.625, 0.5)
    any_of = options.model_copy(update={"confidence": 0.1})
    return [*vectors, _Vector("boxes without area, or the wrong way round", any_of, {"boxes": flat, "scores": sure})]


def _boxes(chance: np.random.Generator, limits: tuple[float, ...]) -> np.ndarray:
    """Return `[4, ANCHORS]` in whole pixels, of which no two overlap by just a limit, which rounding would decide."""
    for _ in range(100):
        corner = chance.integers(0, 24, (ANCHORS, 2))
        boxes = np.concatenate([corner, corner + chance.integers(8, 32, (ANCHORS, 2))], 1).astype(np.float32)
        shares = np.concatenate([overlaps(box, boxes[i + 1 :]) for i, box in enumerate(boxes)])
        if all(np.abs(shares - limit).min() > 1e-3 for limit in limits if 0 < limit < 1):
            break
    return boxes.T


def _rows(options: DetectionOptions) -> list[_Vector]:
    chance = np.random.default_rng(0)
    corner = chance.integers(0, 24, (ANCHORS, 2))
    sides = [
        corner,
        corner + 8,
        (chance.permutation(ANCHORS)[:, None] + UNEVEN) / 32,
        chance.integers(0, 3, (ANCHORS, 1)),
    ]
    rows = np.concatenate(sides, 1).astype(np.float32)
    changed: dict[str, dict[str, Any]] = {
        "the card's options": {},
        "three at most": {"max_detections": 3},
        "nothing is sure": {"confidence": 1.0},
    }
    return [_Vector(n, options.model_copy(update=c), {"detections": rows}) for n, c in changed.items()]


def _with_answer(vector: _Vector) -> dict[str, Any]:
    found = find(vector.outputs, vector.options)
    answer = {name: getattr(found, name).tolist() for name in ("boxes", "scores", "classes", "anchors")}
    given = {name: array.tolist() for name, array in vector.outputs.items()}
    return {
        "name": vector.name,
        "options": vector.options.model_dump(mode="json"),
        "outputs": given,
        "expected": answer,
    }
