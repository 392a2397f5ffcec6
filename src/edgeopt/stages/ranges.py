"""Activation ranges: what part of the values seen in calibration the integers shall cover."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeopt.core.quantization import Estimator
from edgeopt.stages.histogram import BINS, Histogram

Range = tuple[float, float]
PERCENTILE = 99.99
CANDIDATES = 96
ENTROPY_CANDIDATES = 128


def estimate(histogram: Histogram, estimator: Estimator, levels: int, symmetric: bool) -> Range:
    """Return the range to cover, which always holds zero.

    Args:
        histogram: of all values seen.
        estimator: `minmax`, all values; `percentile`, all but 0.01 % at each end; `mse`, the least squared error of
            rounding and clipping together; `entropy`, the least Kullback-Leibler divergence between the histogram and
            its quantized version (Migacz, "8-bit Inference with TensorRT", GTC 2017).
        levels: integers available, 256 for 8 bits.
        symmetric: both ends have the same size.

    Returns:
        low ≤ 0 ≤ high; (0, 0) where nothing but zeros was seen.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high == 0:
        return 0.0, 0.0
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if estimator == "percentile":
        return _percentile(histogram, (low, high), symmetric)
    if estimator == "mse":
        return _least_squares(histogram, (low, high), levels, symmetric)
    if estimator == "entropy":
        return _entropy(histogram, (low, high), levels)
    return low, high


def squared_error(
    histogram: Histogram, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], levels: int
) -> npt.NDArray[np.float64]:
    """Return the expected squared error per value when the ranges [low, high] are covered by `levels` integers.

    Values inside err by step² / 12 on average (exact zeros by nothing), those outside by their distance from the end.

    Args:
        low, high: arrays that broadcast against each other.
    """
    counts, centers = histogram.counts, histogram.centers
    moments = [np.concatenate(([0.0], np.cumsum(counts * centers**k))) for k in range(3)]

    def outside(end: npt.NDArray[np.float64], above: bool) -> npt.NDArray[np.float64]:
        edge = np.clip(np.rint(end / histogram.width).astype(np.int64) + BINS // 2, 0, BINS)
        n, first, second = (m[-1] - m[edge] if above else m[edge] for m in moments)
        return np.maximum(second - 2 * end * first + end**2 * n, 0)

    step = (high - low) / (levels - 1)
    total = counts.sum()
    inside = total - histogram.zeros
    error = (outside(low, above=False) + outside(high, above=True) + inside * step**2 / 12) / total
    return np.asarray(error)


def _least_squares(histogram: Histogram, extremes: Range, levels: int, symmetric: bool) -> Range:
    low, high = extremes
    shares = np.geomspace(1, 0.01, CANDIDATES)
    if symmetric:
        error = squared_error(histogram, low * shares, high * shares, levels)
        best = int(np.argmin(error))
        return float(low * shares[best]), float(high * shares[best])
    lows = low * shares[:, None] if low < 0 else np.zeros((1, 1))
    highs = high * shares[None, :] if high > 0 else np.zeros((1, 1))
    error = squared_error(histogram, lows, highs, levels)
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[row, 0]), float(highs[0, column])


def _percentile(histogram: Histogram, extremes: Range, symmetric: bool) -> Range:
    tail = 1 - PERCENTILE / 100
    if symmetric:
        half = BINS // 2
        sizes = histogram.counts[half:] + histogram.counts[half - 1 :: -1]
        end = _quantile(sizes, 1 - tail) * histogram.width
        end = min(end, extremes[1])
        return -end, end
    low = (_quantile(histogram.counts, tail) - BINS // 2) * histogram.width
    high = (_quantile(histogram.counts, 1 - tail) - BINS // 2) * histogram.width
    return max(min(low, 0.0), extremes[0]), min(max(high, 0.0), extremes[1])


def _quantile(counts: npt.NDArray[np.float64], share: float) -> float:
    """Return the position, in bins, below which lies `share` of the counts; linear within a bin."""
    cumulated = np.concatenate(([0.0], np.cumsum(counts)))
    wanted = share * cumulated[-1]
    index = min(int(np.searchsorted(cumulated, wanted, side="left")), len(counts))
    if index == 0:
        return 0.0
    before, here = cumulated[index - 1], cumulated[index]
    return float(index - 1 + (wanted - before) / (here - before if here > before else 1))


def _entropy(histogram: Histogram, extremes: Range, levels: int) -> Range:
    """Try thresholds that clip both ends alike and return the range whose quantized histogram is nearest.

    Exact zeros, which every range represents, are left out: after a ReLU they would outweigh everything.
    """
    low, high = extremes
    counts = histogram.counts.copy()
    counts[BINS // 2] = max(counts[BINS // 2] - histogram.zeros, 0)
    largest = max(-low, high)
    best = (math.inf, extremes)
    first = math.ceil(-(low / histogram.width)) + math.ceil(high / histogram.width)
    smallest_share = min(1.0, max(levels / 2, 1) / max(first, 1))
    for share in np.linspace(smallest_share, 1, ENTROPY_CANDIDATES):
        threshold = largest * share
        ends = max(low, -threshold), min(high, threshold)
        divergence = _divergence(counts, histogram.width, ends, levels)
        if divergence <= best[0]:
            best = (divergence, ends)
    return best[1]


def _divergence(counts: npt.NDArray[np.float64], width: float, ends: Range, levels: int) -> float:
    """Return the divergence of the histogram clipped to a range from the same, quantized to `levels`.

    Clipped values count in the reference at the range's ends but not in what is quantized, as in the paper.
    """
    start = BINS // 2 + math.floor(ends[0] / width)
    stop = min(max(BINS // 2 + math.ceil(ends[1] / width), start + 1), BINS)
    inside = counts[start:stop]
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    cells = np.arange(len(inside)) * levels // len(inside) if len(inside) > levels else np.arange(len(inside))
    filled = reference > 0
    sums = np.bincount(cells, weights=inside)
    used = np.bincount(cells, weights=filled.astype(np.float64))
    quantized = np.where(filled, (sums / np.maximum(used, 1))[cells], 0)
    if quantized.sum() == 0:
        return math.inf
    p = reference[filled] / reference.sum()
    q = np.maximum(quantized[filled] / quantized.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())
