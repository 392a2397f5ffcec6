"""Metrics against figures worked out by hand and against definitions written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.bench import accuracy

NAMES = ["cat", "dog", "owl"]


def one_hot(told, classes=3):
    return np.eye(classes)[told] * 5.0


def test_a_worked_example():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    told = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    found = accuracy.classification(one_hot(told), labels, NAMES)
    assert found["top1"] == 6 / 8 and found["top5"] is None
    assert found["confusion"] == [[3, 1, 0], [0, 2, 0], [1, 0, 1]]
    rows = {r["name"]: r for r in found["per_class"]}
    assert rows["cat"]["recall"] == 3 / 4 and rows["cat"]["precision"] == 3 / 4
    assert rows["dog"]["f1"] == pytest.approx(0.8) and rows["owl"]["f1"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((0.75 + 0.8 + 2 / 3) / 3)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 60))
def test_against_definitions_written_out(seed, classes, samples):
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((samples, classes))
    labels = generator.integers(0, classes, samples)
    found = accuracy.classification(scores, labels, [])
    order = np.argsort(-scores, axis=-1)
    assert found["top1"] == pytest.approx(np.mean(order[:, 0] == labels))
    if classes > 5:
        assert found["top5"] == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(-1)))
    assert np.sum(found["confusion"]) == samples
    assert 0 <= found["calibration_error"] <= 1
    chances = accuracy.probabilities(scores)
    assert chances.sum(-1) == pytest.approx(1)
    assert accuracy.probabilities(chances) == pytest.approx(chances)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not():
    labels = np.zeros(10, np.int64)
    sure = np.tile([100.0, 0.0], (10, 1))
    assert accuracy.calibration_error(sure, labels) == pytest.approx(0, abs=1e-6)
    assert accuracy.calibration_error(sure, labels + 1) == pytest.approx(1, abs=1e-6)


def test_an_answer_of_nan_is_wrong_and_stands_in_a_column_of_its_own():
    scores = np.array([[1.0, 0.0], [np.nan, 1.0]])
    found = accuracy.classification(scores, np.array([0, 1]), ["a", "b"])
    assert found["top1"] == 0.5 and found["confusion"] == [[1, 0, 0], [0, 0, 1]]


def test_damage_names_the_classes_hit_hardest():
    labels = np.array([0] * 10 + [1] * 10 + [2] * 10)
    before = labels.copy()
    before[0] = 1
    after = before.copy()
    after[0] = 0  # gained
    after[10:14] = 2  # four lost in class 1
    after[20] = 0  # one lost in class 2
    found = accuracy.damage(after, before, labels, NAMES)
    assert (found["lost"], found["gained"]) == (5, 1)
    assert found["drop"] == pytest.approx(4 / 30) and found["agreement"] == pytest.approx(24 / 30)
    assert found["p_value"] == pytest.approx(2 * 7 / 64) and found["drop_at_least"] < found["drop"]
    assert found["hit_hardest"] == ["dog", "owl"]
    assert [(r["name"], round(r["drop"], 6)) for r in found["per_class"]] == [("dog", 0.4), ("owl", 0.1), ("cat", -0.1)]


def test_groups_are_scored_apart():
    labels, told = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0])
    groups = [{"light": "day"}, {"light": "day"}, {"light": "night"}, {"light": "night"}]
    rows = accuracy.by_group(told, labels, labels, groups)
    assert [(r["value"], r["top1"], r["drop"]) for r in rows] == [("day", 1.0, 0.0), ("night", 0.0, 1.0)]


def test_embeddings():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((20, 8))
    found = accuracy.embedding(vectors * 3, vectors)
    assert found["cosine"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    other = accuracy.embedding(generator.standard_normal((20, 8)), vectors)
    assert abs(other["cosine"]) < 0.5 and abs(other["spearman"]) < 0.5
    assert accuracy.embedding(vectors[:2], vectors[:2])["spearman"] is None


def test_rank_correlation_with_ties():
    assert accuracy.spearman(np.array([1, 2, 2, 3]), np.array([10, 20, 20, 30])) == pytest.approx(1)
    assert accuracy.spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert accuracy.spearman(np.array([1, 1, 1]), np.array([3, 2, 1])) is None
