"""Verdicts on synthetic noise whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.bench.latency import summarize
from edgeopt.bench.statistics import (
    alpha_of_look,
    bootstrap_median,
    compare,
    compare_log_ratios,
    compare_measurement,
    log_ratio,
    min_samples,
    percentile,
    trimmed_mean,
)
from edgeopt.core.measurement import Measurement, PairedMeasurement

NOISE = ("plain", "drift", "outliers", "bimodal", "heavy tail")
RUNS = 400


def gates(simulate, kind, ratio, runs=RUNS, **limits):
    found = [compare(simulate(kind, seed, ratio=ratio), **limits) for seed in range(runs)]
    return {word: sum(c.gate == word for c in found) / runs for word in ("pass", "fail", "inconclusive")}


@pytest.mark.parametrize("kind", NOISE)
def test_equal_artifacts_are_not_failed(simulate, kind):
    found = gates(simulate, kind, 1.0, max_ratio=1.0)
    assert found["fail"] <= 0.01
    if kind != "outliers":
        assert found["pass"] > 0.5


@pytest.mark.parametrize("kind", NOISE)
def test_five_per_cent_slower_is_found(simulate, kind):
    found = gates(simulate, kind, 1.05, max_ratio=1.0)
    assert found["pass"] == 0
    assert found["fail"] >= (0.95 if kind in ("plain", "drift", "bimodal") else 0.5)


@pytest.mark.parametrize("kind", NOISE)
def test_a_limit_lets_a_difference_through_and_no_more(simulate, kind):
    assert gates(simulate, kind, 1.05, runs=150, max_ratio=1.10)["fail"] == 0
    assert gates(simulate, kind, 1.20, runs=150, max_ratio=1.10)["pass"] == 0


def test_a_difference_at_the_limit_is_hardly_ever_called(simulate):
    found = gates(simulate, "plain", 1.10, max_ratio=1.10)
    assert found["fail"] <= 0.015
    assert found["pass"] <= 0.015


def test_looking_again_and_again_does_not_add_up_to_false_alarms():
    """Launches differ so much that each look would call about 1 % of equal pairs; all looks together stay within."""
    generator = np.random.default_rng(0)
    alarms = naive = 0
    runs = 3000
    for _ in range(runs):
        observed = 0.08 * generator.standard_normal(40)
        counts = (7, 10, 15, 22, 33)
        looks = [
            compare_log_ratios(observed[:n], max_ratio=1.0, alpha=alpha_of_look(k)).gate
            for k, n in enumerate(counts, 1)
        ]
        alarms += "fail" in looks
        naive += any(compare_log_ratios(observed[:n], max_ratio=1.0).gate == "fail" for n in counts)
    assert alarms / runs <= 0.01
    assert naive / runs > 0.015


def test_the_bounds_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    outside = 0
    runs = 4000
    for _ in range(runs):
        found = compare_log_ratios(0.1 + 0.03 * generator.standard_normal(7), alpha=0.05)
        outside += not found.low <= math.exp(0.1) <= found.high
    assert 0.08 < outside / runs < 0.12  # 5 % on each side


def test_shares_of_the_error_rate_add_up_to_it():
    assert sum(alpha_of_look(k) for k in range(1, 60)) == pytest.approx(0.01)


ratios = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=30)


@given(ratios, st.floats(0.8, 1.3))
def test_exchanging_the_artifacts_exchanges_the_verdict(values, limit):
    mine, theirs = compare_log_ratios(np.array(values)), compare_log_ratios(-np.array(values))
    other = {"slower": "faster", "faster": "slower"}
    assert theirs.verdict == other.get(mine.verdict, mine.verdict)
    assert theirs.ratio == pytest.approx(1 / mine.ratio)
    assert theirs.low == pytest.approx(1 / mine.high)
    assert compare_log_ratios(np.array(values), max_ratio=limit).verdict == mine.verdict


@given(ratios, st.floats(0.8, 1.3), st.floats(0, 0.3))
def test_a_higher_limit_never_makes_a_gate_stricter(values, limit, more):
    order = ["fail", "inconclusive", "pass"]
    strict = compare_log_ratios(np.array(values), max_ratio=limit)
    lenient = compare_log_ratios(np.array(values), max_ratio=limit + more)
    assert order.index(lenient.gate) >= order.index(strict.gate)


@given(ratios)
def test_no_difference_below_the_smallest_that_counts_is_called(values):
    found = compare_log_ratios(np.array(values), max_ratio=1.0)
    if 1 / 1.025 <= found.ratio <= 1.025:
        assert found.verdict in ("equal", "inconclusive")
        assert found.gate != "fail"
    assert found.low <= found.ratio * (1 + 1e-12)
    assert found.ratio <= found.high * (1 + 1e-12)


@given(
    st.lists(st.integers(1_000, 10**9), min_size=5, max_size=60),
    st.floats(0.1, 10),
    st.integers(0, 2**32 - 1),
)
def test_trimmed_means(values, factor, seed):
    samples = np.array(values, float)
    mean = trimmed_mean(samples)
    assert samples.min() <= mean * (1 + 1e-12)
    assert mean <= samples.max() * (1 + 1e-12)
    assert trimmed_mean(samples * factor) == pytest.approx(mean * factor)
    assert trimmed_mean(np.random.default_rng(seed).permutation(samples)) == pytest.approx(mean)
    worst = samples.copy()
    worst[np.argsort(samples)[len(samples) - len(samples) // 5 :]] = 1e15  # a fifth of the calls were disturbed
    assert trimmed_mean(worst) == pytest.approx(mean)


@given(st.floats(0.2, 5))
def test_the_speed_of_the_host_cancels_out(simulate, factor):
    launch = simulate("plain", 0, launches=1)[0]
    scaled = type(launch).from_json(launch.to_json())
    walls = [np.array(s.wall_ns) * factor for s in scaled.samples]
    moved = math.log(trimmed_mean(walls[0]) / trimmed_mean(walls[1]))
    assert moved == pytest.approx(log_ratio(launch), abs=1e-6)


def test_pairs_in_which_another_process_had_the_processor_do_not_count(make_launch):
    launch = make_launch([1000, 5000, 1000, 9000, 1000] * 4, [2000, 2000, 7000, 2000, 2000] * 4)
    worked = [(1000,) * 20, (2000,) * 20]
    samples = tuple(replace(s, cpu_ns=cpu) for s, cpu in zip(launch.samples, worked, strict=True))
    assert log_ratio(replace(launch, samples=samples)) == pytest.approx(math.log(0.5))
    idle = tuple(replace(s, cpu_ns=(10,) * 20) for s in launch.samples)  # the work is done elsewhere
    assert log_ratio(replace(launch, samples=idle)) == log_ratio(launch)


def test_calls_in_groups_are_compared_call_by_call(make_launch):
    launch = make_launch([2000] * 5, [1000] * 5)
    grouped = replace(launch, samples=(replace(launch.samples[0], inner_batch=4), launch.samples[1]))
    assert grouped.samples[0].per_call_ns() == [500.0] * 5
    assert compare([grouped] * 3).ratio == pytest.approx(0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_launches_are_inconclusive(simulate, count):
    found = compare(simulate("plain", 0, ratio=3.0, launches=count), max_ratio=1.0)
    assert (found.verdict, found.gate, found.conclusive) == ("inconclusive", "inconclusive", False)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["high"] is None


def test_launches_that_agree_exactly(make_launch):
    launches = [make_launch([100] * 5, [100] * 5) for _ in range(7)]
    assert compare(launches, max_ratio=1.0).gate == "pass"
    assert compare([make_launch([110] * 5, [100] * 5)] * 7).verdict == "slower"
    assert compare([make_launch([90] * 5, [100] * 5)] * 7).verdict == "faster"


def test_a_stored_measurement_is_judged_as_it_was_made(simulate, make_measurement):
    artifact = make_measurement(simulate("plain", 0)).artifact
    launches = tuple(simulate("plain", 3, ratio=1.06))
    stored = PairedMeasurement(artifact, artifact, "local", 1, "random", launches, (7, 10), 1.02)
    again = PairedMeasurement.from_json(json.loads(json.dumps(stored.to_json() | {"summary": {}})))
    assert again == stored
    assert compare_measurement(again) == compare(launches, max_ratio=1.02, looks=2)
    assert compare_measurement(again, max_ratio=1.5).gate == "pass"


def test_percentiles_need_the_samples_that_loadgen_needs():
    assert (min_samples(0.90), min_samples(0.99)) == (64, 662)
    generator = np.random.default_rng(0)
    assert percentile(generator.random(63), 0.90) is None
    assert percentile(generator.random(64), 0.90) is not None
    assert percentile(generator.random(661), 0.99) is None
    assert percentile(generator.random(662), 0.99) is not None


@pytest.mark.parametrize(("share", "count"), [(0.9, 64), (0.9, 500), (0.99, 700), (0.99, 2100)])
def test_a_percentile_lies_within_its_bounds(share, count):
    generator = np.random.default_rng(2)
    truth = np.quantile(np.random.default_rng(9).lognormal(0, 1, 2_000_000), share)
    above = below = 0
    runs = 1500
    for _ in range(runs):
        found = percentile(generator.lognormal(0, 1, count), share)
        assert found.low <= found.value <= found.high
        above += found.low > truth
        below += found.high < truth
    assert above / runs <= 0.018  # 1 % is promised; the rest is the simulation's own noise
    assert below / runs <= 0.018


def test_the_median_has_an_interval_over_launches():
    generator = np.random.default_rng(0)
    tight = [1000 + generator.standard_normal(100) for _ in range(7)]
    apart = [(1000 + generator.standard_normal(100)) * scale for scale in (0.8, 0.9, 1.0, 1.0, 1.1, 1.2, 1.3)]
    narrow, wide = bootstrap_median(tight), bootstrap_median(apart)
    assert narrow.low <= narrow.value <= narrow.high
    assert narrow.high - narrow.low < 2
    assert wide.high - wide.low > 100
    assert bootstrap_median(tight[:1]).low is None


def test_a_summary(make_launch, make_measurement):
    generator = np.random.default_rng(0)
    launches = [make_launch(generator.normal(8e6, 1e5, 120), energy=600_000) for _ in range(7)]
    measurement = make_measurement(launches)
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement
    found = summarize(measurement)
    assert found.median.value == pytest.approx(8e6, rel=0.01)
    assert found.throughput_per_s == pytest.approx(125, rel=0.01)
    assert found.p99 is not None
    assert found.samples == 840
    assert found.energy_uj_per_call == pytest.approx(5000)
    assert found.model_memory_bytes == 10 << 20
    assert found.notes == ()
    json.dumps(found.to_json(), allow_nan=False)


def test_a_summary_says_what_is_missing(make_launch, make_measurement):
    few = summarize(make_measurement([make_launch([8e6] * 20)] * 3))
    assert few.p90 is None
    assert few.p99 is None
    assert any("60 samples, 64 are needed" in note for note in few.notes)
    assert "energy: not offered by this machine" in few.notes
    some = summarize(make_measurement([make_launch([8e6] * 50)] * 3))
    assert some.p90 is not None
    assert any("150 samples, 662 are needed" in note for note in some.notes)
    grouped = summarize(make_measurement([make_launch([8e6] * 500, inner=10)] * 3))
    assert grouped.p90 is None
    assert any("groups of up to 10" in note for note in grouped.notes)
    uneven = summarize(make_measurement([make_launch([8e6] * 50), make_launch([12e6] * 50, output="other")]))
    assert any("launches differ by" in note for note in uneven.notes)
    assert "outputs differ from launch to launch" in uneven.notes
    busy = summarize(make_measurement([replace(make_launch([8e6] * 50), environment={"load_before": 7.25})] * 3))
    assert "load 7.2 at the start: other work was running" in busy.notes


settings.register_profile("statistics", deadline=None)
settings.load_profile("statistics")
