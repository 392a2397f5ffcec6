"""Tails and quantiles of Student's t, the binomial and the beta distribution, all by the regularized incomplete beta.

The incomplete beta is summed as a continued fraction (modified Lentz; Thompson and Barnett 1986), to about 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

TINY = 1e-300
EPSILON = 1e-14


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) for a, b > 0 and 0 ≤ x ≤ 1."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def t_tail(t: float, freedom: float) -> float:
    """Return P(T > t) of Student's t with `freedom` degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return half if t >= 0 else 1.0 - half


@lru_cache
def t_quantile(tail: float, freedom: float) -> float:
    """Return the t with P(T > t) = `tail`, for 0 < tail ≤ 0.5."""
    high = 1.0
    while t_tail(high, freedom) > tail:
        high *= 2
    return _bisect(lambda t: t_tail(t, freedom) - tail, 0.0, high)


def binomial_at_most(k: int, n: int, p: float) -> float:
    """Return P(X ≤ k) of a binomial with `n` trials of probability `p`."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return incomplete_beta(n - k, k + 1, 1.0 - p)


def proportion_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson 1934) interval of a probability, of which `k` in `n` were seen."""
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: incomplete_beta(k, n - k + 1, p) - tail, 0.0, 1.0)
    high = 1.0 if k == n else _bisect(lambda p: incomplete_beta(k + 1, n - k, p) - (1 - tail), 0.0, 1.0)
    return low, high


def _fraction(a: float, b: float, x: float) -> float:
    c = 1.0
    d = 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away(1.0 + step * d)
            c = _away(1.0 + step / c)
            value *= c * d
        if abs(c * d - 1.0) < EPSILON:
            break
    return value


def _away(value: float) -> float:
    return TINY if abs(value) < TINY else value


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of a monotonic function in [low, high], to the last bits."""
    rising = function(high) > function(low)
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if (function(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2
