"""Non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of `box` [4] and `others` [N, 4], given as centre and size."""
    low = torch.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = torch.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    inter = (high - low).clamp(min=0).prod(-1)
    return inter / (box[2:].prod() + others[:, 2:].prod(-1) - inter).clamp(min=1e-12)


def _select(boxes: Tensor, scores: Tensor, iou: float, minimum: float, limit: int, per_class: bool) -> list[int]:
    """Greedy suppression by best score; `boxes` [B, 4], `scores` [B, K]."""
    best, label = scores.max(-1)
    alive = best >= minimum
    chosen: list[int] = []
    for index in torch.argsort(best, descending=True, stable=True).tolist():
        if len(chosen) == limit:
            break
        if not alive[index]:
            continue
        chosen.append(index)
        drop = _overlap(boxes[index], boxes) > iou
        alive &= ~(drop & (label == label[index])) if per_class else ~drop
    return chosen


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
    score_threshold: float | None = None,
) -> tuple[Tensor, ...]:
    """Keep boxes in descending order of score, dropping what overlaps one kept before.

    `boxes` [N, B, 4] and `scores` [N, B, K] with a score threshold (iOS 15, four results), [N, 4, B] and [N, K, B]
    without (iOS 17, three results). Unused places hold zeros and index -1.
    """
    modern = score_threshold is None
    if modern:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    minimum = float("-inf") if score_threshold is None else score_threshold
    kept_boxes = boxes.new_zeros(boxes.shape[0], max_boxes, 4)
    kept_scores = scores.new_zeros(scores.shape[0], max_boxes, scores.shape[-1])
    indices = torch.full((boxes.shape[0], max_boxes), -1, dtype=torch.int32)
    counts = torch.zeros(boxes.shape[0], dtype=torch.int32)
    for n in range(boxes.shape[0]):
        chosen = _select(boxes[n], scores[n], iou_threshold, minimum, max_boxes, per_class_suppression)
        kept_boxes[n, : len(chosen)] = boxes[n, chosen]
        kept_scores[n, : len(chosen)] = scores[n, chosen]
        indices[n, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
        counts[n] = len(chosen)
    if modern:
        return kept_boxes.transpose(1, 2), kept_scores.transpose(1, 2), indices
    return kept_boxes, kept_scores, indices, counts


OPS: dict[str, Callable[..., Any]] = {"non_maximum_suppression": non_maximum_suppression}
