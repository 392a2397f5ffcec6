"""Drops of accuracy on the same samples: nothing is called beyond doubt that chance explains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.core.paired import PairedAnswers


@st.composite
def answers(draw):
    samples = draw(st.integers(1, 3000))
    lost = draw(st.integers(0, samples))
    return PairedAnswers(samples, lost, draw(st.integers(0, samples - lost)))


@given(answers())
def test_at_a_limit_of_zero_it_is_mcnemars_statistic_with_edwards_correction(found):
    changed = found.lost + found.gained
    difference = found.lost - found.gained
    corrected = max(difference - 1, 0) if difference > 0 else difference
    expected = corrected / math.sqrt(changed) if changed else 0.0
    assert found.z(0.0) == pytest.approx(expected, abs=1e-6)


@given(answers(), st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_limit_is_never_exceeded_where_a_smaller_one_is_not(found, a, b):
    small, large = sorted((a, b))
    assert found.exceeds(small) or not found.exceeds(large)
    assert not found.exceeds(max(found.drop, 0.0))


@given(answers())
def test_the_lower_bound_is_where_the_test_turns(found):
    bound = found.lower_bound()
    assert -1 <= bound <= found.drop + 1e-9
    if 0.001 < bound < 0.89:
        assert found.exceeds(bound - 0.001) and not found.exceeds(bound + 0.001)


@pytest.mark.parametrize("samples", [64, 150, 500, 2000])
@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.02), (0.01, 0.0), (0.06, 0.01), (0.2, 0.19)])
def test_a_drop_at_the_limit_is_called_too_large_in_one_run_of_a_hundred_at_most(samples, lost, gained):
    generator = np.random.default_rng(samples)
    counts = generator.multinomial(samples, [lost, gained, 1 - lost - gained], size=4000)
    called = sum(PairedAnswers(samples, int(b), int(c)).exceeds(lost - gained) for b, c, _ in counts)
    assert called / len(counts) <= 0.012  # 1 %, and what 4,000 draws scatter


def test_one_point_on_150_samples_is_no_evidence():
    found = PairedAnswers(150, 2, 0)
    assert found.drop > 0.01 and not found.exceeds(0.01)
    needed = found.samples_needed(0.01)
    assert needed is not None and needed > 1000


def test_the_samples_said_to_be_needed_settle_it_in_most_runs():
    needed = PairedAnswers(200, 9, 1).samples_needed(0.01)
    assert needed is not None
    generator = np.random.default_rng(0)
    counts = generator.multinomial(needed, [0.045, 0.005, 0.95], size=1000)
    called = np.mean([PairedAnswers(needed, int(b), int(c)).exceeds(0.01) for b, c, _ in counts])
    assert 0.7 < called < 0.92
    assert PairedAnswers(200, 1, 9).samples_needed(0.01) is None
