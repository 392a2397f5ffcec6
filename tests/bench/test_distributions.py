from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.bench.distributions import (
    binomial_at_most,
    incomplete_beta,
    proportion_interval,
    t_quantile,
    t_tail,
)


def exact_binomial(k, n, p):
    p = Fraction(p)
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_binomial_tails_are_the_sums(k, n, p):
    assert binomial_at_most(k, n, p) == pytest.approx(exact_binomial(min(k, n), n, p), abs=1e-11)


@given(st.floats(0.5, 200), st.floats(0.5, 200), st.floats(0.001, 0.999))
def test_the_incomplete_beta_mirrors(a, b, x):
    assert incomplete_beta(a, b, x) + incomplete_beta(b, a, 1 - x) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("tail", "freedom", "expected"),
    # Student's t table
    [(0.05, 1, 6.314), (0.01, 6, 3.143), (0.005, 6, 3.707), (0.025, 10, 2.228), (0.01, 30, 2.457), (0.001, 4, 7.173)],
)
def test_quantiles_of_the_table(tail, freedom, expected):
    assert t_quantile(tail, freedom) == pytest.approx(expected, abs=6e-4)


@given(st.floats(1e-6, 0.5), st.integers(1, 200))
def test_quantile_and_tail_are_inverse(tail, freedom):
    assert t_tail(t_quantile(tail, freedom), freedom) == pytest.approx(tail, rel=1e-6)


@given(st.floats(-50, 50), st.integers(1, 100))
def test_tails_of_t_mirror(t, freedom):
    assert t_tail(t, freedom) + t_tail(-t, freedom) == pytest.approx(1)


def test_intervals_of_proportions():
    # 0 of n: the rule of three's exact form
    assert proportion_interval(0, 300) == (0.0, pytest.approx(1 - 0.025 ** (1 / 300)))
    assert proportion_interval(60, 60) == (pytest.approx(0.025 ** (1 / 60)), 1.0)
    low, high = proportion_interval(3, 300)
    assert 1 - exact_binomial(2, 300, low) == pytest.approx(0.025, abs=1e-9)
    assert exact_binomial(3, 300, high) == pytest.approx(0.025, abs=1e-9)
