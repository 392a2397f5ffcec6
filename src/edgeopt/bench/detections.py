"""Raw boxes and scores to detections, by non-maximum suppression in numpy: what an app does behind an artifact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeopt.core.detection import DetectionOptions, Detections

FAR = 2.0
"""Classes are moved apart by this many times the largest coordinate, so that boxes of two never overlap."""


def find(outputs: Mapping[str, np.ndarray], options: DetectionOptions) -> Detections:
    """Return the detections in one image.

    Args:
        outputs: without the batch: `boxes` `[4, anchors]` and `scores` `[classes, anchors]`, or `detections` `[n, 6]`
            (left, top, right, bottom, score, class) of a network that needs no suppression.
        options: of the suppression.
    """
    if "detections" in outputs:
        rows = np.asarray(outputs["detections"], np.float32)
        kept = np.flatnonzero(rows[:, 4] >= options.confidence)
        kept = kept[np.argsort(-rows[kept, 4], kind="stable")][: options.max_detections]
        return Detections(rows[kept, :4], rows[kept, 4], rows[kept, 5].astype(np.int64), kept)
    boxes, scores = (np.asarray(outputs[n], np.float32) for n in ("boxes", "scores"))
    classes = scores.argmax(0)
    best = scores.max(0)
    kept = np.flatnonzero(best >= options.confidence)
    kept = kept[np.argsort(-best[kept], kind="stable")]
    corners = boxes.T[kept]
    if corners.size and not options.class_agnostic:
        corners = corners + (classes[kept] * FAR * float(np.abs(corners).max()))[:, None]
    kept = kept[suppress(corners, options.iou, options.max_detections)]
    return Detections(boxes.T[kept], best[kept], classes[kept].astype(np.int64), kept)


def suppress(boxes: np.ndarray, iou: float, most: int) -> np.ndarray:
    """Return indices of the boxes `[n, 4]`, sorted by falling score, that no better one overlaps by more than `iou`."""
    kept: list[int] = []
    left = np.arange(len(boxes))
    while left.size and len(kept) < most:
        kept.append(int(left[0]))
        left = left[1:][overlaps(boxes[left[0]], boxes[left[1:]]) <= iou]
    return np.asarray(kept, np.int64)


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box `[4]` with each of `[n, 4]`."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.clip(sides, 0, None).prod(1)
    union = (
        np.clip(box[2:] - box[:2], 0, None).prod() + np.clip(others[:, 2:] - others[:, :2], 0, None).prod(1) - common
    )
    shares: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares
