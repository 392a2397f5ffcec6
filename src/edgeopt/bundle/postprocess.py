# SPDX-License-Identifier: Apache-2.0
"""From a detector's outputs to the objects in an image: what stands behind the model in an app. Needs numpy alone.

This file lies in the bundle as it is, to be used or to be ported. `python postprocess.py` checks it against
`postprocess_test_vectors.json` beside it; so should a port. The options are those under `model.detection` in
`manifest.json`.

The model's outputs, of which those of one image are given here, without the batch:

- `boxes` `[4, anchors]`: left, top, right, bottom in pixels of the model's input;
- `scores` `[classes, anchors]`: 0 to 1;
- `masks` `[coefficients, anchors]` and `prototypes` `[coefficients, height, width]`, of networks that segment;
- `keypoints` `[points * 2 or 3, anchors]`, of networks that find poses;
- or `detections` `[n, 6]` in place of boxes and scores: left, top, right, bottom, score, class. That is what a file
  gives whose entry in the manifest says `nms`; masks and keypoints then have one column per row, and rows behind the
  last object are zero.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def detect(
    outputs: dict[str, Any],
    confidence: float = 0.25,
    iou: float = 0.7,
    max_detections: int = 300,
    class_agnostic: bool = False,
) -> dict[str, Any]:
    """Return the objects, the surest first.

    Args:
        outputs: of one image, see above.
        confidence: what is less sure is dropped.
        iou: of two boxes of one class that overlap by more (intersection over union), the surer stays.
        max_detections: as many are kept at most.
        class_agnostic: whether boxes of two classes suppress each other too.

    Returns:
        `boxes` `[n, 4]`, `scores` `[n]`, `classes` `[n]`, and `anchors` `[n]`: where each stands in the outputs.
    """
    if "detections" in outputs:
        rows = np.asarray(outputs["detections"], np.float32).reshape(-1, 6)
        order = np.argsort(-rows[:, 4], kind="stable")
        kept = order[rows[order, 4] >= confidence][:max_detections]
        classes = rows[kept, 5].astype(np.int64)
        return {"boxes": rows[kept, :4], "scores": rows[kept, 4], "classes": classes, "anchors": kept}
    boxes = np.asarray(outputs["boxes"], np.float32).T
    scores = np.asarray(outputs["scores"], np.float32)
    kinds, best = scores.argmax(0), scores.max(0)
    order = np.argsort(-best, kind="stable")
    waiting = order[best[order] >= confidence]
    chosen: list[int] = []
    while len(waiting) and len(chosen) < max_detections:
        first, waiting = waiting[0], waiting[1:]
        chosen.append(int(first))
        overlaps = intersection_over_union(boxes[first], boxes[waiting]) > iou
        if not class_agnostic:
            overlaps &= kinds[waiting] == kinds[first]
        waiting = waiting[~overlaps]
    kept = np.asarray(chosen, np.int64)
    return {"boxes": boxes[kept], "scores": best[kept], "classes": kinds[kept].astype(np.int64), "anchors": kept}


def intersection_over_union(box: Any, others: Any) -> Any:
    """Return the share of one box `[4]` and each of `[n, 4]` that both have; 0 where both are empty."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(1)
    own, theirs = np.maximum(box[2:] - box[:2], 0).prod(), np.maximum(others[:, 2:] - others[:, :2], 0).prod(1)
    union = own + theirs - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0)


def to_image(boxes: Any, image: tuple[int, int], model: tuple[int, int]) -> Any:
    """Return boxes `[n, 4]` of the model's input in pixels of the image, cut at its edges.

    Args:
        boxes: as `detect` returns them.
        image: height and width of the image that was letterboxed: scaled to fit, centred, grey around it.
        model: height and width of the model's input.
    """
    ratio = min(model[0] / image[0], model[1] / image[1])
    height, width = (max(1, round(side * ratio)) for side in image)
    offset = np.array([(model[1] - width) // 2, (model[0] - height) // 2] * 2)
    scale = np.array([width / image[1], height / image[0]] * 2)
    return np.clip((boxes - offset) / scale, 0, [image[1], image[0]] * 2).astype(np.float32)


def masks(outputs: dict[str, Any], found: dict[str, Any], model: tuple[int, int]) -> Any:
    """Return whether each object covers each pixel of the prototypes, `[n, height, width]`; outside its box none.

    Args:
        outputs: of one image, with `masks` and `prototypes`.
        found: what `detect` made of them.
        model: height and width of the model's input.
    """
    prototypes = np.asarray(outputs["prototypes"], np.float32)
    weights = np.asarray(outputs["masks"], np.float32)[:, found["anchors"]]
    height, width = prototypes.shape[1:]
    covered = np.einsum("cn,chw->nhw", weights, prototypes) > 0
    left, top, right, bottom = (side[:, None, None] for side in np.asarray(found["boxes"]).T)
    x = (np.arange(width) + 0.5) * model[1] / width
    y = ((np.arange(height) + 0.5) * model[0] / height)[:, None]
    return covered & (x >= left) & (x < right) & (y >= top) & (y < bottom)


def keypoints(outputs: dict[str, Any], found: dict[str, Any], numbers: int = 3) -> Any:
    """Return points `[n, points, numbers]` in pixels of the model's input; the third number is how visible one is."""
    return np.asarray(outputs["keypoints"], np.float32)[:, found["anchors"]].T.reshape(
        len(found["anchors"]), -1, numbers
    )


def check(vectors: Path) -> int:
    """Return how many test vectors there are, once `detect` has given each one's objects.

    Raises:
        AssertionError: it gave others.
    """
    cases = json.loads(vectors.read_text(encoding="utf-8"))["vectors"]
    for case in cases:
        found = detect(case["outputs"], **case["options"])
        for name, expected in case["expected"].items():
            shape = (-1, 4) if name == "boxes" else (-1,)
            told = np.asarray(expected, np.float32).reshape(shape)
            assert np.array_equal(np.asarray(found[name], np.float32), told), f"{case['name']}: {name} differ"
    return len(cases)


if __name__ == "__main__":
    count = check(Path(__file__).with_name("postprocess_test_vectors.json"))
    sys.stdout.write(f"{count} test vectors agree\n")
