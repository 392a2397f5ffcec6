"""An integer weight as an artifact stores it; every format's reader returns these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """A weight read back from an artifact: the real value is `values * scale`, the scale broadcast along `axis`.

    Attributes:
        values: integers in an int8 array in the memory order of the format, 4-bit ones in [-8, 7].
        scale: float32, one per output channel; for block-wise weights of shape (output channels, blocks).
        axis: of `values` that holds the output channels.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int
