"""Metrics say what they should of answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

TASK = "image-classification"


def test_accuracy_of_known_answers(parts):
    labels = np.array([0, 0, 1, 2])
    outputs = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]] * 20
    found = parts.evaluation.score(outputs, labels, TASK)
    assert found.metric == "top1" and found.value == 0.75
    assert found.per_class == {0: 0.5, 1: 1.0, 2: 1.0}
    assert found.values["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found.values["calibration_error"] == pytest.approx(0.25, abs=1e-4), "certain, and wrong once in four"
    assert "top5" not in found.values and found.to_json()["samples"] == 4


def test_answers_against_a_reference(parts):
    draw = np.random.default_rng(0)
    reference = draw.standard_normal((40, 8)).astype(np.float32)
    same = parts.evaluation.score(3 * reference, None, TASK, reference)
    assert same.metric == "agreement" and same.value == 1.0 and same.values["cosine"] == pytest.approx(1.0)
    vectors = parts.evaluation.score(-reference, None, "sentence-embedding", reference)
    assert vectors.metric == "cosine" and vectors.value == pytest.approx(-1.0)
    assert parts.evaluation.score(reference, None, "sentence-embedding").metric is None


def test_five_best_of_ten(parts):
    outputs = np.tile(np.arange(10, dtype=np.float32), (10, 1))
    found = parts.evaluation.score(outputs, np.arange(10), TASK)
    assert found.values["top1"] == pytest.approx(0.1) and found.values["top5"] == pytest.approx(0.5)
