"""The learning rate at a step, as a share of the highest: a function of the step alone, so resuming needs no state."""

from __future__ import annotations

import math

from edgeopt.core.training import TrainingSettings

START = 1 / 25
END = 1e-4


def rate_at(step: int, total: int, settings: TrainingSettings) -> float:
    """Return the share of the highest learning rate at a step, counted from 0.

    One-cycle: L. N. Smith, N. Topin: "Super-Convergence", 2017: from 1/25 along a cosine up and down to 1/10,000.
    """
    rising = round(settings.warm_up * total)
    if settings.schedule == "one-cycle":
        if step < rising:
            return _cosine(START, 1.0, step / rising)
        return _cosine(1.0, END, (step - rising) / max(1, total - rising))
    if step < rising:
        return (step + 1) / rising
    if settings.schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - rising) / max(1, total - rising))


def _cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2
