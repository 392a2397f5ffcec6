"""Non-maximum suppression and average precision, on boxes whose answer is known."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from edgeopt.bench.detections import find, overlaps
from edgeopt.core.detection import DetectionOptions, Detections, Truth, Window

BOXES = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 0, 10, 10]], np.float32)
SCORES = np.array([[0.9, 0.8, 0.1, 0.0], [0.0, 0.0, 0.6, 0.7]], np.float32)


def outputs():
    return {"boxes": BOXES.T, "scores": SCORES}


def test_of_two_boxes_of_one_class_the_better_stays():
    found = find(outputs(), DetectionOptions(iou=0.5))
    assert found.anchors.tolist() == [0, 3, 2]
    assert found.classes.tolist() == [0, 1, 1]
    assert np.allclose(found.scores, [0.9, 0.7, 0.6])
    assert find(outputs(), DetectionOptions(iou=0.5, class_agnostic=True)).anchors.tolist() == [0, 2]
    assert find(outputs(), DetectionOptions(iou=0.9)).anchors.tolist() == [0, 1, 3, 2]
    assert find(outputs(), DetectionOptions(confidence=0.75)).anchors.tolist() == [0]
    assert find(outputs(), DetectionOptions(max_detections=2)).anchors.tolist() == [0, 3]
    assert find(outputs(), DetectionOptions(confidence=0.95)).boxes.shape == (0, 4)


def test_rows_of_a_network_that_needs_no_suppression():
    rows = np.array([[0, 0, 5, 5, 0.3, 2], [1, 1, 6, 6, 0.9, 1], [0, 0, 1, 1, 0.1, 0]], np.float32)
    found = find({"detections": rows}, DetectionOptions())
    assert found.classes.tolist() == [1, 2] and found.anchors.tolist() == [1, 0]


def test_suppression_agrees_with_the_plain_definition():
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 30, (200, 2))], 1).astype(np.float32)
    scores = random.uniform(0, 1, (3, 200)).astype(np.float32)
    kept = []
    for anchor in np.argsort(-scores.max(0)):
        if scores[:, anchor].max() < 0.25:
            continue
        same = [k for k in kept if scores[:, k].argmax() == scores[:, anchor].argmax()]
        if all(overlaps(boxes[k], boxes[anchor : anchor + 1])[0] <= 0.45 for k in same):
            kept.append(int(anchor))
    assert find({"boxes": boxes.T, "scores": scores}, DetectionOptions(iou=0.45)).anchors.tolist() == kept


@pytest.mark.skipif(find_spec("pycocotools") is None, reason="needs the extra detection: pycocotools")
def test_average_precision():
    from edgeopt.tasks.detect import mean_average_precision

    place = Window((0.5, 0.5), (0.0, 8.0))
    truths = [
        Truth((48, 64), ((10.0, 10.0, 30.0, 30.0), (40.0, 5.0, 60.0, 25.0)), (0, 1), (False, False), place),
        Truth((48, 64), ((0.0, 0.0, 20.0, 40.0),), (1,), (False,), place),
    ]

    def detections(truth, shift=0.0):
        boxes = np.array(truth.boxes, np.float32) * 0.5 + np.array([0, 8, 0, 8], np.float32) + np.float32(shift)
        count = len(boxes)
        return Detections(boxes, np.full(count, 0.9, np.float32), np.array(truth.classes), np.arange(count))

    assert mean_average_precision(truths, [detections(t) for t in truths]) == {"map50": 1.0, "map50_95": 1.0}
    moved = mean_average_precision(truths, [detections(t, 1.0) for t in truths])
    assert moved["map50"] == 1.0 and 0.3 < moved["map50_95"] < 0.9
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), np.zeros(0, int))
    half = mean_average_precision(truths, [detections(truths[0]), nothing])
    assert half["map50"] == pytest.approx(0.75, abs=0.01)
    assert mean_average_precision(truths, [nothing, nothing]) == {"map50": 0.0, "map50_95": 0.0}
