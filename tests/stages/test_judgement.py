"""How near a detector's boxes are to the float network's: `edgeopt.stages.judgement`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.stages.judgement import Judge

DETECTOR = Judge((None, None), classes=False, boxes=True)
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 30.0]]).mT[None, None]
SCORES = torch.tensor([[0.9, 0.1], [0.2, 0.3]])[None, None]


def overlap(boxes, scores, reference=(BOXES, SCORES)):
    tally = DETECTOR.tally()
    tally.add(reference, (boxes, scores), None)
    score = tally.score()
    assert score.task_metric() == score.overlap
    return score.overlap


def test_the_same_boxes_overlap_whole():
    assert overlap(BOXES, SCORES) == 1
    assert overlap(BOXES, SCORES * 0.5) == 1, "scores are judged by their noise"


def test_each_box_counts_by_the_score_it_had():
    moved = BOXES.clone()
    moved[..., 0, 0] = 5.0
    assert overlap(moved, SCORES) == pytest.approx((0.9 * 0.5 + 0.3) / 1.2)
    away = BOXES.clone()
    away[..., :, 1] += 100
    assert overlap(away, SCORES) == pytest.approx(0.9 / 1.2)


def test_a_box_of_another_class_overlaps_nothing():
    assert overlap(BOXES, SCORES.flip(-2)) == 0


def test_boxes_without_area_neither_count_nor_divide_by_zero():
    flat = BOXES.clone()
    flat[..., 2, 1] = flat[..., 0, 1]
    assert overlap(flat, SCORES, reference=(flat, SCORES)) == 1


def test_where_nothing_is_found_nothing_is_lost():
    nothing = torch.zeros_like(SCORES)
    assert overlap(BOXES + 5, nothing, reference=(BOXES, nothing)) == 1


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8))
def test_overlap_is_a_share(values):
    other = torch.tensor(values).view(1, 1, 4, 2)
    assert 0 <= overlap(other, SCORES) <= 1
