"""Verdicts on latency: raw samples in, an interval and one of a few words out.

What differs from launch to launch (memory layout, frequency, neighbours) is far larger here than what differs from call
to call, so a launch is one observation, and tests and intervals run over launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from edgeopt.bench.distributions import binomial_at_most, t_quantile
from edgeopt.bench.paired_accuracy import AccuracyDifference, accuracy_difference
from edgeopt.core.measurement import Launch, PairedMeasurement

__all__ = [
    "AccuracyDifference",
    "Comparison",
    "Quantity",
    "accuracy_difference",
    "alpha_of_look",
    "bootstrap_median",
    "compare",
    "compare_log_ratios",
    "compare_measurement",
    "log_ratio",
    "min_samples",
    "percentile",
    "trimmed_mean",
]

Floats = np.ndarray
Verdict = Literal["faster", "slower", "equal", "inconclusive"]
Gate = Literal["pass", "fail", "inconclusive"]

TRIM = 0.2
ALPHA = 0.01
MIN_EFFECT = 0.025
MIN_LAUNCHES = 3
MIN_PAIRS = 5
WAITED = 0.02
RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """One artifact's time as a multiple of another's.

    Attributes:
        ratio: of the two, from the mean over launches; above 1 the artifact is slower.
        low, high: two one-sided bounds of the ratio, each of error rate `alpha`.
        alpha: error rate of one side of the test, at this look.
        spread: standard deviation of the log ratio from launch to launch.
        min_effect: a difference from equal smaller than this share is never called one.
        verdict: `slower` or `faster` where a t-test over launches says so and the ratio is beyond `min_effect`; `equal`
            where both bounds lie within it; else `inconclusive`.
        launches: observations.
        pairs: timed in all of them.
        max_ratio: the limit asked for.
        gate: `fail` where the test says that the ratio is above the limit, and the ratio is above 1 + `min_effect` too;
            `pass` where the upper bound is within one of the two; else `inconclusive`. None without a limit.
    """

    ratio: float
    low: float
    high: float
    alpha: float
    spread: float
    min_effect: float
    verdict: Verdict
    launches: int
    pairs: int
    max_ratio: float | None = None
    gate: Gate | None = None

    @property
    def conclusive(self) -> bool:
        """Whether more launches are not needed: the limit was judged, or without one the difference."""
        return (self.gate or self.verdict) != "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only; an infinite bound is None."""
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in asdict(self).items()}


def compare(
    launches: Sequence[Launch],
    *,
    max_ratio: float | None = None,
    min_effect: float = MIN_EFFECT,
    looks: int = 1,
    alpha: float = ALPHA,
) -> Comparison:
    """Judge the first artifact of paired launches against the second.

    Args:
        launches: in pair mode.
        max_ratio: a limit to hold the ratio against.
        min_effect: the smallest difference that counts, as a share.
        looks: how often a verdict was sought on these launches as they grew, this time included.
        alpha: error rate of one side, over all looks together.
    """
    observed = np.array([log_ratio(launch) for launch in launches])
    pairs = sum(min(len(s.wall_ns) for s in launch.samples) for launch in launches)
    spent = alpha_of_look(looks, alpha)
    return compare_log_ratios(observed, pairs=pairs, max_ratio=max_ratio, min_effect=min_effect, alpha=spent)


def compare_measurement(measurement: PairedMeasurement, *, max_ratio: float | None = None) -> Comparison:
    """Judge a stored measurement at the look at which it ended, against its own limit unless another is given."""
    limit = measurement.max_ratio if max_ratio is None else max_ratio
    return compare(
        measurement.launches, max_ratio=limit, min_effect=measurement.min_effect, looks=len(measurement.looks)
    )


def compare_log_ratios(
    observed: Floats,
    *,
    pairs: int = 0,
    max_ratio: float | None = None,
    min_effect: float = MIN_EFFECT,
    alpha: float = ALPHA,
) -> Comparison:
    """Judge log ratios, shape (launches,), one of each launch; see `Comparison`."""
    count = len(observed)
    mean = float(observed.mean()) if count else 0.0
    spread, low, high = math.nan, -math.inf, math.inf
    if count >= MIN_LAUNCHES:
        spread = float(observed.std(ddof=1))
        reach = t_quantile(alpha, count - 1) * spread / math.sqrt(count)
        low, high = mean - reach, mean + reach
    margin = math.log1p(min_effect)
    verdict: Verdict = "inconclusive"
    if mean > margin and low > 0:
        verdict = "slower"
    elif mean < -margin and high < 0:
        verdict = "faster"
    elif -margin <= low and high <= margin:
        verdict = "equal"
    gate: Gate | None = None
    if max_ratio is not None:
        limit = math.log(max_ratio)
        gate = "inconclusive"
        if mean > max(limit, margin) and low > limit:
            gate = "fail"
        elif high <= max(limit, margin):
            gate = "pass"
    return Comparison(
        ratio=math.exp(mean),
        low=math.exp(low),
        high=math.exp(high),
        alpha=alpha,
        spread=spread,
        min_effect=min_effect,
        verdict=verdict,
        launches=count,
        pairs=pairs,
        max_ratio=max_ratio,
        gate=gate,
    )


def alpha_of_look(look: int, alpha: float = ALPHA) -> float:
    """Return the error rate spent at the n-th look: a half, a quarter, an eighth ... of the whole.

    Whoever looks again after an inconclusive answer gives chance another turn; in this way all turns together stay
    within `alpha`, however many there are.
    """
    return float(alpha / 2**look)


def log_ratio(launch: Launch) -> float:
    """Return the log of the ratio of both artifacts' trimmed means in one launch in pair mode.

    A pair is set aside where the process had to wait for a processor in either call: the kernel gave it to another
    process, which says nothing of the artifacts. Where fewer than five pairs are left, as on an accelerator whose work
    the processor's clock does not show, all count.
    """
    mine, other = (np.array(s.per_call_ns()) for s in launch.samples)
    waited = [np.array(s.wall_ns) - np.array(s.cpu_ns) > WAITED * np.array(s.wall_ns) for s in launch.samples]
    kept = ~(waited[0] | waited[1])
    if kept.sum() >= MIN_PAIRS:
        mine, other = mine[kept], other[kept]
    return math.log(trimmed_mean(mine) / trimmed_mean(other))


def trimmed_mean(samples: Floats, share: float = TRIM) -> float:
    """Return the mean of `samples`, shape (n,), without the lowest and the highest `share` of them."""
    cut = int(len(samples) * share)
    return float(np.sort(samples)[cut : len(samples) - cut].mean())


@dataclass(frozen=True)
class Quantity:
    """A value with an interval; `low` and `high` are None where no interval can be given."""

    value: float
    low: float | None = None
    high: float | None = None


def bootstrap_median(groups: Sequence[Floats], *, confidence: float = 0.95, seed: int = 0) -> Quantity:
    """Return the median of all samples, with a percentile bootstrap interval.

    Launches are drawn with replacement, then samples within each: calls of one launch resemble one another, and drawing
    from the pool alone would give an interval far too narrow. No interval from a single launch.
    """
    value = float(np.median(np.concatenate(groups)))
    if len(groups) < 2:
        return Quantity(value)
    generator = np.random.default_rng(seed)
    medians = []
    for _ in range(RESAMPLES):
        drawn = [groups[i] for i in generator.integers(len(groups), size=len(groups))]
        medians.append(np.median(np.concatenate([g[generator.integers(len(g), size=len(g))] for g in drawn])))
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Quantity(value, float(low), float(high))


def percentile(samples: Floats, share: float, *, confidence: float = 0.99) -> Quantity | None:
    """Return a percentile with bounds of `confidence` on each side, or None with too few samples.

    The upper bound is the largest sample that the early-stopping rule of MLPerf's LoadGen leaves over: with n samples
    the t slowest may be set aside as long as P(Binomial(n, 1 − share) ≤ t) ≤ 1 − confidence; the next is no lower than
    the percentile. One must be set aside at least, so p90 needs 64 samples and p99 needs 662. The lower bound mirrors
    it. Both take samples as independent.
    """
    count = len(samples)
    if count < min_samples(share, confidence):
        return None
    ordered = np.sort(samples)
    value = float(np.quantile(ordered, share, method="higher"))
    below, aside = _set_aside(count, share, confidence), _set_aside(count, 1 - share, confidence)
    return Quantity(value, float(ordered[max(below, 0)]), float(ordered[count - 1 - aside]))


@lru_cache
def min_samples(share: float, confidence: float = 0.99) -> int:
    """Return how many samples a percentile needs."""
    count = 2
    while binomial_at_most(1, count, 1 - share) > 1 - confidence:
        count += 1
    return count


@lru_cache
def _set_aside(count: int, share: float, confidence: float) -> int:
    """Return the largest t with P(Binomial(count, share) ≤ t) ≤ 1 − confidence; -1 where there is none."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_at_most(middle, count, share) <= 1 - confidence else (low, middle)
    return low
