from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.bench.paired_accuracy import mcnemar
from edgeopt.bench.statistics import accuracy_difference


def answers(samples, lost, gained, right=0.9):
    """Return answers of an artifact and its original with so many of them changed."""
    original = np.zeros(samples)
    original[: int(right * samples)] = 1
    mine = original.copy()
    mine[:lost] = 0
    mine[samples - gained :] = 1
    return mine, original


def test_one_point_on_150_samples_is_no_evidence():
    found = accuracy_difference(*answers(150, 3, 1), max_drop=0.01)
    assert found.difference == pytest.approx(-2 / 150)
    assert (found.verdict, found.gate) == ("inconclusive", "inconclusive")
    assert found.p_value > 0.5


def test_a_drop_that_is_there():
    found = accuracy_difference(*answers(900, 60, 5), max_drop=0.01)
    assert (found.verdict, found.gate) == ("worse", "fail")
    assert found.high < -0.01
    assert accuracy_difference(*answers(900, 5, 60), max_drop=0.01).verdict == "better"


def test_few_samples_that_all_agree_prove_little():
    same = np.ones(20)
    assert accuracy_difference(same, same, max_drop=0.01).gate == "inconclusive"
    assert accuracy_difference(np.ones(5000), np.ones(5000), max_drop=0.01).gate == "pass"


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 0.0625), (6, 0, 0.03125), (8, 2, 0.109375)]
)
def test_mcnemar_exact(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p)
    assert mcnemar(gained, lost) == pytest.approx(p)


@given(st.integers(20, 300), st.integers(0, 9), st.integers(0, 2))
def test_exchanging_the_two_mirrors_the_result(samples, lost, gained):
    mine, other = answers(samples, lost, gained)
    forth, back = accuracy_difference(mine, other), accuracy_difference(other, mine)
    assert forth.difference == pytest.approx(-back.difference)
    assert forth.low == pytest.approx(-back.high)
    assert forth.p_value == pytest.approx(back.p_value)
    assert forth.low <= forth.difference <= forth.high


def test_false_alarms_and_coverage_on_equal_models():
    generator = np.random.default_rng(0)
    alarms = missed = 0
    runs = 2000
    for _ in range(runs):
        other = generator.random(200) < 0.8
        flips = generator.random(200) < 0.06
        # As many right answers are lost as gained, on average.
        mine = np.where(flips, generator.random(200) < 0.5, other)
        other = np.where(flips, generator.random(200) < 0.5, other)
        found = accuracy_difference(mine, other)
        alarms += found.verdict != "inconclusive"
        missed += not found.low <= 0 <= found.high
    assert alarms / runs <= 0.05
    assert missed / runs <= 0.06


def test_scores_other_than_right_and_wrong_are_bootstrapped():
    generator = np.random.default_rng(0)
    original = generator.random(300)
    same = accuracy_difference(original + 0.05 * generator.standard_normal(300), original, max_drop=0.05)
    assert (same.verdict, same.gate) == ("inconclusive", "pass")
    worse = accuracy_difference(original - 0.1 + 0.05 * generator.standard_normal(300), original, max_drop=0.05)
    assert (worse.verdict, worse.gate) == ("worse", "fail")
    assert 0 < worse.p_value < 0.001


@pytest.mark.parametrize("pair", [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_scores_of_other_samples_are_refused(pair):
    with pytest.raises(ValueError, match="same samples"):
        accuracy_difference(*pair)
