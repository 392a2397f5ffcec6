"""Whether a drop of accuracy goes beyond a limit, judged on the same samples answered by both models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CHANCE = 0.01  # of calling a drop too large where it lies at the limit
POWER = 0.8


@dataclass(frozen=True)
class PairedAnswers:
    """How two models answered the same labelled samples.

    Attributes:
        samples: answered by both.
        lost: right in the original, wrong in the artifact.
        gained: wrong in the original, right in the artifact.
    """

    samples: int
    lost: int
    gained: int

    @property
    def drop(self) -> float:
        """Accuracy of the original minus the artifact's, as a share."""
        return (self.lost - self.gained) / self.samples

    def z(self, limit: float) -> float:
        """Return the score statistic of the drop against `limit`; positive where the drop is larger.

        Unlike the interval of plus or minus so many standard deviations it holds at small counts: Tango, Equivalence
        test and confidence interval for the difference in proportions for the paired-sample design, 1998. With a
        correction for continuity, without which it calls a drop too large twice as often as it says where few samples
        change; at a limit of zero it is McNemar's statistic as corrected by Edwards, 1948.

        Args:
            limit: the drop that is allowed, as a share; -1 < limit < 1.
        """
        n, b, c = self.samples, self.lost, self.gained
        difference = b - c - n * limit
        difference = max(difference - 1, 0.0) if difference > 0 else difference
        # The share of gained samples, restricted to where the true drop is `limit`, solves a quadratic.
        linear = -b - c + (2 * n - b + c) * limit
        constant = -c * limit * (1 - limit)
        gained = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * gained + limit * (1 - limit))
        if variance <= 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / math.sqrt(variance)

    def exceeds(self, limit: float, chance: float = CHANCE) -> bool:
        """Whether the drop is larger than `limit` beyond doubt (one-sided, at `chance`)."""
        return self.drop > limit and self.z(limit) > _quantile(1 - chance)

    def lower_bound(self) -> float:
        """Return the smallest drop that these answers do not rule out (one-sided, 1 %)."""
        threshold = _quantile(1 - CHANCE)
        low, high = -1.0 + 1e-9, self.drop
        if self.z(low) <= threshold:
            return -1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.z(middle) > threshold else (low, middle)
        return high

    def samples_needed(self, limit: float, chance: float = CHANCE) -> int | None:
        """Return how many samples would settle a drop of this size against `limit` in four of five runs.

        None where the drop is not above the limit: more samples are then no cure.
        """
        excess = self.drop - limit
        if excess <= 0:
            return None
        discordant = (self.lost + self.gained) / self.samples
        variance = max(discordant - self.drop**2, limit * (1 - limit), 1 / self.samples**2)
        return max(self.samples + 1, math.ceil((_quantile(1 - chance) + _quantile(POWER)) ** 2 * variance / excess**2))


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
