"""Whether two artifacts' answers on the same samples differ in accuracy by more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from edgeopt.bench.distributions import binomial_at_most

RESAMPLES = 4000


@dataclass(frozen=True)
class AccuracyDifference:
    """A difference of accuracies (or of mean scores) on the same samples.

    Attributes:
        samples: compared.
        accuracy, against: of the artifact, and of the one it is compared with.
        difference: accuracy − against; negative where the artifact is worse.
        low, high: 95 % interval of it.
        p_value: of no difference, two-sided.
        verdict: `worse` or `better` where p ≤ 5 %, else `inconclusive`: the samples show no difference, which does not
            show that there is none.
        max_drop: the limit asked for.
        gate: `fail` where the whole interval lies below −max_drop, `pass` where none of it does, else `inconclusive`;
            None without a limit.
    """

    samples: int
    accuracy: float
    against: float
    difference: float
    low: float
    high: float
    p_value: float
    verdict: Literal["worse", "better", "inconclusive"]
    max_drop: float | None = None
    gate: Literal["pass", "fail", "inconclusive"] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)


def accuracy_difference(
    correct: Sequence[float],
    against: Sequence[float],
    *,
    max_drop: float | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> AccuracyDifference:
    """Compare answers sample by sample.

    Right and wrong answers (0 or 1) are judged by the exact McNemar test and the interval of Bonett and Price (2012),
    which is not fooled by few samples that all agree. Other scores are judged by a paired bootstrap.

    Args:
        correct, against: one score of each sample, the same samples in the same order; at least one.
        max_drop: a limit to hold the drop against, e.g. 0.01.
        alpha: of the test and of the interval.
        seed: of the bootstrap.
    """
    mine, other = np.asarray(correct, np.float64), np.asarray(against, np.float64)
    if mine.shape != other.shape or mine.ndim != 1 or not len(mine):
        raise ValueError(f"scores of the same samples are needed, not of shapes {mine.shape} and {other.shape}")
    difference = float(mine.mean() - other.mean())
    if np.isin(mine, (0, 1)).all() and np.isin(other, (0, 1)).all():
        lost, gained = int(((mine == 0) & (other == 1)).sum()), int(((mine == 1) & (other == 0)).sum())
        p_value = mcnemar(lost, gained)
        low, high = _bonett_price(lost, gained, len(mine), alpha)
    else:
        low, high, p_value = _bootstrap(mine - other, alpha, seed)
    verdict: Literal["worse", "better", "inconclusive"] = "inconclusive"
    if p_value <= alpha and difference:
        verdict = "worse" if difference < 0 else "better"
    gate: Literal["pass", "fail", "inconclusive"] | None = None
    if max_drop is not None:
        gate = "pass" if low >= -max_drop else "fail" if high < -max_drop else "inconclusive"
    return AccuracyDifference(
        len(mine),
        float(mine.mean()),
        float(other.mean()),
        difference,
        low,
        high,
        p_value,
        verdict,
        max_drop,
        gate,
    )


def mcnemar(lost: int, gained: int) -> float:
    """Return the exact two-sided p value of answers that changed: right to wrong, and wrong to right."""
    changed = lost + gained
    return min(1.0, 2 * binomial_at_most(min(lost, gained), changed, 0.5)) if changed else 1.0


def _bonett_price(lost: int, gained: int, samples: int, alpha: float) -> tuple[float, float]:
    a, b = (lost + 1) / (samples + 2), (gained + 1) / (samples + 2)
    reach = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt((a + b - (b - a) ** 2) / (samples + 2))
    return max(-1.0, b - a - reach), min(1.0, b - a + reach)


def _bootstrap(differences: np.ndarray, alpha: float, seed: int) -> tuple[float, float, float]:
    generator = np.random.default_rng(seed)
    count = len(differences)
    means = np.array([differences[generator.integers(count, size=count)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    # With the observed sample counted in, the smallest p that so many draws can show is not zero.
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
