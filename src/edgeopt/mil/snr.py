"""Signal-to-noise ratio, the measure everything here is compared by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def snr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    """Return 10 log10 of the reference's power over the error's.

    Infinite where both are equal; minus infinite where the reference is zero, or one has a number that the other has as
    infinite or not-a-number.
    """
    truth, other = np.asarray(reference, dtype=np.float64), np.asarray(value, dtype=np.float64)
    finite = np.isfinite(truth)
    if not np.array_equal(truth[~finite], other[~finite], equal_nan=True):
        return -math.inf
    truth, other = truth[finite], other[finite]
    error = float(np.square(truth - other).sum())
    power = float(np.square(truth).sum())
    if error == 0.0:
        return math.inf
    return 10.0 * math.log10(power / error) if power and math.isfinite(error) else -math.inf
