"""Range estimators against plain numpy on all the samples, and what calibration keeps in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.stages.histogram import BINS, SAMPLES_PER_UPDATE, Histogram
from edgeopt.stages.ranges import PERCENTILE, estimate, squared_error

ESTIMATORS = ("minmax", "percentile", "mse", "entropy")

floats = st.floats(-1e4, 1e4, width=32).map(lambda v: v if abs(v) > 1e-6 else 0.0)
batches = st.lists(st.lists(floats, min_size=1, max_size=60), min_size=1, max_size=6)


def fed(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.update(torch.as_tensor(np.asarray(part, np.float32)))
    return histogram


def rounded(values, low, high, levels):
    """Quantize and dequantize as integers of `levels` values do."""
    step = (high - low) / (levels - 1)
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, levels - 1) - zero) * step


@given(batches)
@settings(deadline=None)
def test_extremes_are_exact_and_minmax_holds_zero(parts):
    histogram = fed(*parts)
    values = np.concatenate([np.asarray(p, np.float32) for p in parts])
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert estimate(histogram, "minmax", 256, symmetric=False) == (min(values.min(), 0), max(values.max(), 0))


@given(batches)
@settings(deadline=None)
def test_every_value_lies_in_the_bin_that_counts_it(parts):
    histogram = fed(*parts)
    values = np.concatenate([np.asarray(p, np.float32) for p in parts]).astype(np.float64)
    if histogram.width == 0:
        assert not values.any()
        return
    edges = (np.arange(BINS + 1) - BINS // 2) * histogram.width
    assert np.array_equal(histogram.counts, np.histogram(values, edges)[0])
    assert histogram.zeros == (values == 0).sum()


@given(batches, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_the_samples_changes_nothing(parts, random):
    shuffled = random.sample(parts, len(parts))
    one, other = fed(*parts), fed(*shuffled)
    assert one.width == other.width
    assert np.array_equal(one.counts, other.counts)
    for estimator in ESTIMATORS:
        assert estimate(one, estimator, 256, symmetric=False) == estimate(other, estimator, 256, symmetric=False)


@given(batches, st.sampled_from(ESTIMATORS), st.booleans(), st.sampled_from([256, 65535]))
@settings(max_examples=60, deadline=None)
def test_ranges_hold_zero_and_stay_inside_the_extremes(parts, estimator, symmetric, levels):
    histogram = fed(*parts)
    low, high = estimate(histogram, estimator, levels, symmetric)
    smallest, largest = min(histogram.low, 0), max(histogram.high, 0)
    if symmetric:
        largest = max(-smallest, largest)
        smallest = -largest
        assert low == -high
    assert smallest <= low <= 0 <= high <= largest
    assert (low < high) == (smallest < largest), "what was seen is not flattened to nothing"


@pytest.mark.parametrize("levels", [256, 65536])
@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "outliers"])
def test_the_modelled_error_is_that_of_rounding_and_clipping(shape, levels):
    values = sample(shape)
    histogram = fed(*np.split(values, 20))
    for share in (1.0, 0.5, 0.2):
        low, high = min(values.min(), 0) * share, max(values.max(), 0) * share
        true = np.square(values - rounded(values.astype(np.float64), low, high, levels)).mean()
        model = squared_error(histogram, np.array(low), np.array(high), levels)
        assert model == pytest.approx(true, rel=0.1)


def sample(shape):
    generator = np.random.default_rng(0)
    values = generator.standard_normal(100_000) if shape != "laplace" else generator.laplace(size=100_000)
    if shape == "relu":
        values = np.maximum(values, 0)
    if shape == "outliers":
        values[:50] *= 40
    return values.astype(np.float32)


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "outliers"])
def test_mse_is_as_good_as_the_best_of_an_exhaustive_search(shape):
    values = sample(shape)
    low, high = estimate(fed(*np.split(values, 10)), "mse", 256, symmetric=False)
    found = np.square(values - rounded(values, low, high, 256)).mean()
    few = values[::20]
    best = min(
        ((a, b) for a in np.linspace(0.02, 1, 50) for b in np.linspace(0.02, 1, 50)),
        key=lambda ab: np.square(few - rounded(few, min(few.min(), 0) * ab[0] - 1e-9, few.max() * ab[1], 256)).mean(),
    )
    searched = rounded(values, min(few.min(), 0) * best[0] - 1e-9, few.max() * best[1], 256)
    assert found <= np.square(values - searched).mean() * 1.05


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 50))
@settings(max_examples=20, deadline=None)
def test_percentile_is_numpys(seed, size):
    values = (np.random.default_rng(seed).standard_t(3, 50_000) * size).astype(np.float32)
    histogram = fed(*np.split(values, 10))
    low, high = estimate(histogram, "percentile", 256, symmetric=False)
    tail = 100 - PERCENTILE
    # Between two samples any number is a quantile, so the oracle gives the pair around it.
    for found, share in ((low, tail), (high, PERCENTILE)):
        before, after = (np.percentile(values, share, method=m) for m in ("lower", "higher"))
        assert before - histogram.width <= found <= after + histogram.width


def test_entropy_clips_where_minmax_does_not():
    values = sample("outliers")
    histogram = fed(values)
    low, high = estimate(histogram, "entropy", 256, symmetric=False)
    smallest, largest = estimate(histogram, "minmax", 256, symmetric=False)
    assert high - low < 0.5 * (largest - smallest)
    inside = values[50:]
    assert high > 0.7 * inside.max(), "the bulk stays"


def test_entropy_covers_all_of_what_has_no_tail():
    values = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    low, high = estimate(fed(values), "entropy", 256, symmetric=False)
    assert high - low > 1.9


def test_entropy_after_a_relu_is_not_drawn_to_zero():
    values = np.maximum(sample("normal") - 1, 0)
    _, high = estimate(fed(values), "entropy", 256, symmetric=False)
    assert high > 0.6 * values.max()


def test_estimators_differ():
    histogram = fed(sample("outliers"))
    found = {estimate(histogram, e, 256, symmetric=False) for e in ESTIMATORS}
    assert len(found) == len(ESTIMATORS)


@pytest.mark.parametrize("bad", [float("-inf"), float("inf"), float("nan"), float(np.finfo(np.float32).min)])
def test_masks_and_overflow_are_not_observed(bad):
    histogram = fed([bad, -1.0, 2.0, bad], [bad])
    assert (histogram.low, histogram.high) == (-1, 2)
    assert histogram.counts.sum() == 2


def test_values_beyond_what_the_reader_tells_apart_do_not_widen_the_range():
    histogram = Histogram()
    histogram.update(torch.tensor([-50.0, -1.0, 4.0]), lower=-3.0)
    assert (histogram.low, histogram.high) == (-3, 4)
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("largest", [1e-30, 1e-36, 1e-41])
def test_values_next_to_nothing_have_bins_of_their_own(largest):
    values = np.linspace(-largest, largest, 101, dtype=np.float32)
    histogram = fed(values)
    assert histogram.counts.sum() == 101
    assert (histogram.counts > 0).sum() > 90


def test_nothing_but_zeros_and_nothing_at_all():
    for histogram in (fed([0.0, 0.0]), Histogram(), fed(np.zeros((0, 3)))):
        for estimator in ESTIMATORS:
            assert estimate(histogram, estimator, 256, symmetric=False) == (0, 0)


def test_memory_is_bounded_whatever_the_number_of_samples():
    histogram = Histogram()
    generator = torch.Generator().manual_seed(0)

    def size():
        return sum(v.nbytes if isinstance(v, np.ndarray) else 8 for v in vars(histogram).values())

    for i in range(200):
        histogram.update(torch.randn(3000, generator=generator) * (1 + i))
        assert size() <= BINS * 8 + 100
    histogram.update(torch.randn(1, 8, 500, 500, generator=generator))
    assert size() <= BINS * 8 + 100


def test_a_large_tensor_is_counted_in_part_but_stands_for_all_of_it():
    values = torch.randn(1, 64, 80, 80, generator=torch.Generator().manual_seed(0))
    values[0, 3] *= 5
    histogram = Histogram()
    for _ in range(5):
        histogram.update(values)
    assert histogram.counts.sum() == pytest.approx(5 * values.numel(), rel=1e-9)
    assert np.count_nonzero(histogram.counts) <= 5 * (SAMPLES_PER_UPDATE + 2)
    assert histogram.high == values.max()
    share = histogram.counts[histogram.centers > 4].sum() / histogram.counts.sum()
    assert share == pytest.approx((values > 4).float().mean().item(), rel=0.15)


@pytest.mark.parametrize("calls", [1, 5, 7])
def test_one_outlier_at_a_fixed_place_is_not_passed_over(calls):
    """A transformer's first token has one channel far larger than all; several nodes may share the observer."""
    values = torch.randn(1, 64, 384, generator=torch.Generator().manual_seed(0))
    values[0, 0, 77] = 4000
    histogram = Histogram()
    for _ in range(20):
        for _ in range(calls):
            histogram.update(values)
    assert histogram.counts[histogram.centers > 3000].sum() >= 20
    assert estimate(histogram, "mse", 256, symmetric=False)[1] > 2000
