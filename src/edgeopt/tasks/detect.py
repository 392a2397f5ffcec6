"""Mean average precision of stored outputs, where the data tells the objects in the images."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.detections import find
from edgeopt.core.arrays import array_file
from edgeopt.core.detection import METRICS, DetectionOptions, Detections, Truth
from edgeopt.core.errors import MissingBackendError
from edgeopt.core.model import TensorSpec
from edgeopt.tasks.samples import TRUTH

EVALUATION = DetectionOptions(confidence=0.001, iou=0.7, max_detections=300)
"""Precision is averaged over all confidences, so hardly any box is dropped."""


def score(inputs: Path, outputs: Path, specs: tuple[TensorSpec, ...]) -> dict[str, float]:
    """Write `metrics.json` beside stored outputs and return it; empty where there are no boxes to compare.

    Args:
        inputs: folder with `truth.json`.
        outputs: folder with `<output>.npy` of shape (batches, *output shape).
        specs: of the outputs.
    """
    names = {s.name for s in specs}
    metrics: dict[str, float] = {}
    if (inputs / TRUTH).is_file() and ({"boxes", "scores"} <= names or "detections" in names):
        truths = [Truth.from_json(record) for record in json.loads((inputs / TRUTH).read_bytes())]
        wanted = names & {"boxes", "scores", "detections"}
        arrays = {n: np.load(array_file(outputs, n), mmap_mode="r") for n in wanted}
        arrays = {n: a.reshape(-1, *a.shape[2:]) for n, a in arrays.items()}
        found = [find({n: a[i] for n, a in arrays.items()}, EVALUATION) for i in range(len(truths))]
        metrics = mean_average_precision(truths, found)
    (outputs / METRICS).write_text(json.dumps(metrics))
    return metrics


def mean_average_precision(truths: list[Truth], found: list[Detections]) -> dict[str, float]:
    """Return COCO's `map50` and `map50_95`, boxes being compared in pixels of the images.

    Args:
        truths: one per image.
        found: the same images' detections, in pixels of the model's input.

    Raises:
        MissingBackendError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingBackendError("pycocotools", "detection") from error
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for index, (truth, detections) in enumerate(zip(truths, found, strict=True), 1):
        images.append({"id": index, "height": truth.size[0], "width": truth.size[1]})
        for box, kind, crowd in zip(truth.boxes, truth.classes, truth.crowd, strict=True):
            size = _size(box)
            entry = {"image_id": index, "category_id": kind, "bbox": [*box[:2], *size], "area": size[0] * size[1]}
            annotations.append(entry | {"id": len(annotations) + 1, "iscrowd": int(crowd)})
        scale, offset = np.array(truth.window.scale * 2), np.array(truth.window.offset * 2)
        boxes = np.clip((detections.boxes - offset) / scale, 0, (truth.size[1], truth.size[0]) * 2)
        for corners, value, kind in zip(boxes.tolist(), detections.scores, detections.classes, strict=True):
            entry = {"image_id": index, "category_id": int(kind), "bbox": [*corners[:2], *_size(corners)]}
            results.append(entry | {"score": float(value)})
    if not results or not annotations:
        return {"map50": 0.0, "map50_95": 0.0}
    kinds = sorted({a["category_id"] for a in annotations} | {r["category_id"] for r in results})
    with contextlib.redirect_stdout(sys.stderr):
        reference = COCO()
        reference.dataset = {"images": images, "annotations": annotations, "categories": [{"id": k} for k in kinds]}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.params.catIds = sorted({a["category_id"] for a in annotations})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map50": float(evaluation.stats[1]), "map50_95": float(evaluation.stats[0])}


def _size(box: Any) -> tuple[float, float]:
    return max(0.0, box[2] - box[0]), max(0.0, box[3] - box[1])
