"""Activation ranges over all samples, and eight-bit packages made with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import DataError, UsageError
from edgeopt.mil import Evaluator, load_package, snr_db
from edgeopt.mil.ranges import Histogram, Range, RangeObserver, activation_ranges, samples_of
from edgeopt.mil.w8a8 import quantize_package
from edgeopt.mil.weights import coverage

mb = mil.Builder


@dataclass
class _Sample:
    inputs: dict[str, np.ndarray]


class _Source:
    """Counts how many samples are alive at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> _Sample:
        self.read.append(index)
        scale = 1.0 + 9.0 * (index == self.count // 2)  # the extreme sample is neither first nor last
        return _Sample({"x": np.random.default_rng(index).standard_normal((3, 16, 16)).astype(np.float32) * scale})


def test_all_samples_count_and_are_read_once(small_program: Any) -> None:
    source = _Source(5)
    evaluator = Evaluator(small_program)
    ranges = activation_ranges(evaluator, samples_of(source))
    assert source.read == [0, 1, 2, 3, 4]
    everything: dict[str, list[np.ndarray]] = {}
    for sample in samples_of(_Source(5)):
        evaluator(sample, hook=lambda kind, name, value: everything.setdefault(name, []).append(value.numpy().copy()))
    assert everything.keys() <= ranges.keys()
    for name, values in everything.items():
        low = min(v.min() for v in values)
        # Only ReLUs read the convolutions, so what is below zero does not count there.
        assert ranges[name].low == (0.0 if name.startswith("conv2d") else low)
        assert ranges[name].high == max(v.max() for v in values)
    whole = np.stack([source[i].inputs["x"] for i in range(5)])
    assert ranges["x"] == Range(float(whole.min()), float(whole.max()))


def test_samples_are_streamed(small_program: Any) -> None:
    def endless() -> Iterator[dict[str, np.ndarray]]:
        for index in range(3):
            yield {"x": np.full((1, 3, 16, 16), float(index), np.float32)}
            produced.append(index)

    produced: list[int] = []
    seen: list[int] = []
    evaluator = Evaluator(small_program)
    activation_ranges(evaluator, (seen.append(len(produced)) or sample for sample in endless()))  # type: ignore[func-returns-value]
    assert seen == [0, 1, 2]


def test_no_sample_is_an_error_and_unknown_method_too(small_program: Any) -> None:
    with pytest.raises(DataError, match="no sample"):
        activation_ranges(Evaluator(small_program), [])
    with pytest.raises(UsageError, match="did you mean 'minmax'"):
        RangeObserver("minimax")  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), min_size=1, max_size=6))
def test_histogram_keeps_every_value_whatever_the_order(parts: list[list[float]]) -> None:
    histogram = Histogram()
    for part in parts:
        histogram.add(torch.tensor(part))
    values = [value for part in parts for value in part]
    if histogram.limit:
        late = next(i for i, part in enumerate(parts) if any(part))  # zeros before the first other value have no scale
        assert histogram.counts.sum() == sum(len(part) for part in parts[late:])
        assert histogram.limit >= max(map(abs, values))
        low, high = histogram.percentile(100.0)
        width = 2 * histogram.limit / len(histogram.counts)
        rest = [value for part in parts[late:] for value in part]
        assert low <= min(rest) + width
        assert high >= max(rest) - width


def test_percentile_and_smallest_error_cut_outliers() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    values[0] = 100.0
    bounds = {}
    for method in ("minmax", "percentile", "mse"):
        observer = RangeObserver(method, 99.9)
        for part in values.chunk(7):
            observer("relu", "y", part)
        bounds[method] = observer.ranges()["y"]
    assert bounds["minmax"].high == 100.0
    assert 3.0 < bounds["percentile"].high < 6.0
    assert bounds["mse"].high < 100.0

    def error(limits: Range) -> float:
        step = (limits.high - limits.low) / 255
        stored = torch.round((values - limits.low) / step).clamp(0, 255) * step + limits.low
        return float((values - stored).square().sum())

    assert error(bounds["mse"]) <= error(bounds["minmax"])


def test_infinite_values_are_left_out() -> None:
    observer = RangeObserver()
    observer("add", "mask", torch.tensor([0.0, -float("inf"), 2.0]))
    observer("add", "all", torch.tensor([-float("inf")]))
    observer("add", "ints", torch.tensor([1, 2]))
    assert observer.ranges() == {"mask": Range(0.0, 2.0)}


def test_concats_share_a_range_across_a_chain(make_program: Any) -> None:
    def build(x: Any) -> Any:
        a, b, c = mb.mul(x=x, y=np.float32(1), name="a"), mb.mul(x=x, y=np.float32(5), name="b"), mb.exp(x=x, name="c")
        first = mb.concat(values=(a, b), axis=0, name="first")
        return mb.concat(values=(first, c), axis=0, name="second")

    x = np.array([-1.0, 2.0], np.float32)
    ranges = activation_ranges(Evaluator(make_program(build, {"x": x})), [{"x": x}])
    assert {ranges[n] for n in ("a", "b", "c", "first", "second")} == {Range(-5.0, 10.0)}


def test_what_only_clamping_activations_read_has_their_range(make_program: Any) -> None:
    def build(x: Any) -> Any:
        wide = mb.mul(x=x, y=np.float32(10), name="wide")
        shared = mb.mul(x=x, y=np.float32(20), name="shared")
        return mb.relu6(x=wide), mb.clip(x=shared, alpha=np.float32(-1), beta=np.float32(4)), mb.relu(x=shared)

    x = np.array([-3.0, 2.0], np.float32)
    ranges = activation_ranges(Evaluator(make_program(build, {"x": x})), [{"x": x}])
    assert ranges["wide"] == Range(0.0, 6.0)
    assert ranges["shared"] == Range(-1.0, 40.0)


@pytest.fixture(scope="module")
def eight_bit(small_package: Path, tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("w8a8") / "w8a8.mlpackage"
    ranges = activation_ranges(Evaluator(load_package(small_package)), samples_of(_Source(5)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coremltools' own deprecations
        quantize_package(small_package, out, ranges)
    return out


def test_w8a8_package_made_here_evaluates_near_the_float_one(eight_bit: Path, small_program: Any) -> None:
    program = load_package(eight_bit)
    evaluator, original = Evaluator(program), Evaluator(small_program)
    kinds = [kind for kind, _ in evaluator.steps]
    assert kinds.count("quantize") >= 3
    report = coverage(program, small_program)
    assert len(report.compressed) == 3
    assert all(layer.snr_db is not None and layer.snr_db > 40 for layer in report.layers)
    assert all(layer.quantized_input for layer in report.layers)
    x = _Source(5)[2].inputs["x"][None]
    (value,), (truth,) = evaluator({"x": x}).values(), original({"x": x}).values()
    assert snr_db(truth, value) > 25


def test_w8a8_scales_come_from_the_given_ranges(eight_bit: Path, small_package: Path) -> None:
    ranges = activation_ranges(Evaluator(load_package(small_package)), samples_of(_Source(5)))
    first = next(op for op in load_package(eight_bit).body.operations if op.op_type == "quantize")
    assert float(first.scale.val) == pytest.approx(max(-ranges["x"].low, ranges["x"].high) / 127, rel=0.01)
