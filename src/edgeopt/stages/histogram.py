"""What calibration remembers of one tensor: its extremes and a histogram, in a fixed amount of memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

BINS = 8192
SAMPLES_PER_UPDATE = 8192
# Numbers beyond this are masks (finfo.min) or overflow, never activations that an integer scale could carry.
LARGEST = 1e30

Values = npt.NDArray[np.float32]
_PRIMES = (1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


class Histogram:
    """Streaming extremes and histogram of a tensor, whatever the number of samples.

    Memory: `BINS` numbers of 8 bytes, 64 KiB, per observed tensor, and `SAMPLES_PER_UPDATE` values while one update
    runs; no sample is kept. The extremes are exact. The histogram counts at most `SAMPLES_PER_UPDATE` values of each
    update and its two extremes, taken in strides that divide no axis from a random start; each counts for as many as it
    stands for.

    Bins are `width` wide, and `width` is a power of two with an edge at zero, so a range that grows merges bins in
    pairs without moving a value: while no update is subsampled, the order of the samples changes nothing.

    Attributes:
        low, high: smallest and largest finite value seen; 0 before the first.
        zeros: how many values were exactly zero (no rounding hurts them).
        counts: of the bins, `float64[BINS]`; zeros are in the bin that begins at 0.
        width: of a bin.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.seen = False
        self.zeros = 0.0
        self.counts: npt.NDArray[np.float64] = np.zeros(BINS)
        self.width = 0.0
        self._offsets = np.random.default_rng(0)

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """Middle of each bin."""
        return np.asarray((np.arange(BINS) - BINS // 2 + 0.5) * self.width, dtype=np.float64)

    def update(self, values: torch.Tensor, lower: float = -math.inf, upper: float = math.inf) -> None:
        """Take in a tensor of any shape; values are brought between `lower` and `upper` first."""
        if values.numel() == 0:
            return
        flat = values.detach().reshape(-1)
        low, high = (float(v) for v in torch.aminmax(flat))
        if not (abs(low) < LARGEST and abs(high) < LARGEST):
            flat = flat[flat.abs() < LARGEST]  # NaN compares false
            if flat.numel() == 0:
                return
            low, high = (float(v) for v in torch.aminmax(flat))
        low, high = min(max(low, lower), upper), max(min(high, upper), lower)
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.seen else (low, high)
        self.seen = True
        self._grow(max(abs(low), abs(high)))
        stride = _stride(flat.numel(), values.shape)
        start = int(self._offsets.integers(stride)) if stride > 1 else 0
        some = flat[start::stride].float().numpy()  # NumPy's calls cost less than PyTorch's on so few values
        if stride > 1:
            self._count_some(some.clip(low, high), flat.numel(), (low, high))
        elif lower > -math.inf or upper < math.inf:
            self._count(some.clip(lower, upper), 1.0)
        else:
            self._count(some, 1.0)

    def _grow(self, largest: float) -> None:
        """Widen the bins until they hold `largest`, merging pairs."""
        if largest == 0:
            return
        needed = 2.0 ** math.ceil(math.log2(largest / (BINS // 2)))
        while needed * (BINS // 2) <= largest:  # the last edge is outside
            needed *= 2
        if self.width == 0:
            self.width = needed
            zero = float(self.counts.sum())
            self.counts[:] = 0
            self.counts[BINS // 2] = zero
        while self.width < needed:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.width *= 2

    def _count_some(self, some: Values, total: int, extremes: tuple[float, float]) -> None:
        """Count values for the `total` that they stand for, but a lone extreme, which may set the scale, once."""
        for extreme in set(extremes):
            alike = some == extreme
            if np.count_nonzero(alike) <= 1:
                some = some[~alike]
                self._count_one(extreme)
                total -= 1
        if some.size > 0:
            self._count(some, total / some.size)

    def _count_one(self, value: float) -> None:
        self.zeros += value == 0
        self.counts[BINS // 2 + (math.floor(value / self.width) if self.width else 0)] += 1

    def _count(self, values: Values, weight: float) -> None:
        zeros = values.size - np.count_nonzero(values)
        self.zeros += zeros * weight
        if self.width == 0:
            self.counts[BINS // 2] += zeros * weight
            return
        index = np.floor(values / np.float64(self.width)).astype(np.int64)
        index += BINS // 2
        self.counts += np.bincount(index, minlength=BINS) * weight


def _stride(count: int, shape: torch.Size) -> int:
    """Return a stride that leaves at most `SAMPLES_PER_UPDATE` values and meets all positions of every axis."""
    least = -(-count // SAMPLES_PER_UPDATE)
    if least == 1:
        return 1
    candidates = (p for p in _PRIMES if p >= least and all(size % p for size in shape))
    return next(candidates, least | 1)
