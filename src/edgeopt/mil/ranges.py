"""Ranges of every activation over all samples, read one sample at a time.

Memory is bounded by the number of variables, not of samples: a minimum and a maximum each, and where a percentile or
the smallest quantization error is asked for, a histogram of fixed length whose bins double in width when a value falls
outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.core.errors import DataError, UsageError, did_you_mean
from edgeopt.mil.executor import Evaluator

Method = Literal["minmax", "percentile", "mse"]
_METHODS = ("minmax", "percentile", "mse")
_BINS = 2048


@dataclass(frozen=True)
class Range:
    """What a variable's values lie between."""

    low: float
    high: float


class Samples(Protocol):
    """What `samples_of` reads: samples by index, inputs without the batch dimension."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return a sample with an `inputs` dictionary."""
        ...


def samples_of(source: Samples) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield every sample of a DataSource as a batch of one, read from disk only when it is its turn."""
    for index in range(len(source)):
        yield {name: array[None] for name, array in source[index].inputs.items()}


class Histogram:
    """Counts over [-limit, limit]; `limit` doubles, and bins merge in pairs, when a value falls outside."""

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Count finite values."""
        top = float(values.abs().max()) if values.numel() else 0.0
        if top == 0.0 and self.limit == 0.0:
            return
        if self.limit == 0.0:
            self.limit = top
        while top > self.limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts.zero_()
            self.counts[_BINS // 4 : 3 * _BINS // 4] = merged
            self.limit *= 2
        self.counts += torch.histc(values.float(), _BINS, -self.limit, self.limit)

    @property
    def centres(self) -> NDArray[Any]:
        """Middle of every bin."""
        width = 2 * self.limit / _BINS
        return -self.limit + width * (np.arange(_BINS) + 0.5)

    def percentile(self, percent: float) -> tuple[float, float]:
        """Return the bounds that leave (100 - percent) / 2 % of the values out on either side."""
        total = self.counts.sum().item()
        cumulated = self.counts.cumsum(0).numpy()
        tail = (1 - percent / 100) / 2 * total
        width = 2 * self.limit / _BINS
        first = int(np.searchsorted(cumulated, tail, side="right"))
        last = int(np.searchsorted(cumulated, total - tail, side="left"))
        return -self.limit + width * first, -self.limit + width * (min(last, _BINS - 1) + 1)

    def smallest_error(self, low: float, high: float, levels: int = 256) -> tuple[float, float]:
        """Shrink [low, high] to what gives the smallest squared error with `levels` even steps."""
        centres, counts = self.centres, self.counts.numpy()
        best, chosen = math.inf, (low, high)
        for share in np.linspace(0.3, 1.0, 36):
            a, b = low * share, high * share
            step = (b - a) / (levels - 1)
            if step <= 0:
                continue
            stored = np.clip(np.rint((centres - a) / step), 0, levels - 1) * step + a
            error = float((counts * np.square(centres - stored)).sum())
            if error < best:
                best, chosen = error, (float(a), float(b))
        return chosen


class RangeObserver:
    """Takes every value of one call after the other; `ranges` gives what was seen so far."""

    def __init__(self, method: Method = "minmax", percent: float = 99.99) -> None:
        """Choose how outliers are treated.

        Raises:
            UsageError: there is no such method.
        """
        if method not in _METHODS:
            raise UsageError(f"unknown range method {method!r}{did_you_mean(method, _METHODS)}")
        self.method = method
        self.percent = percent
        self._extremes: dict[str, tuple[float, float]] = {}
        self._histograms: dict[str, Histogram] = {}

    def __call__(self, kind: str, name: str, value: torch.Tensor) -> None:
        """Take one variable's value; an evaluator's hook. What is no float, and infinite elements, are left out."""
        del kind
        if not value.is_floating_point() or not value.numel():
            return
        low, high = (float(v) for v in torch.aminmax(value))
        if not (math.isfinite(low) and math.isfinite(high)):
            value = value[torch.isfinite(value)]
            if not value.numel():
                return
            low, high = (float(v) for v in torch.aminmax(value))
        before = self._extremes.get(name, (low, high))
        self._extremes[name] = (min(low, before[0]), max(high, before[1]))
        if self.method != "minmax":
            self._histograms.setdefault(name, Histogram()).add(value)

    def ranges(self) -> dict[str, Range]:
        """Return the range of every variable."""
        result = {}
        for name, (low, high) in self._extremes.items():
            histogram = self._histograms.get(name)
            if histogram is not None and histogram.limit > 0:
                if self.method == "percentile":
                    a, b = histogram.percentile(self.percent)
                    low, high = max(low, a), min(high, b)
                else:
                    low, high = histogram.smallest_error(low, high)
            result[name] = Range(low, high)
        return result


def activation_ranges(
    evaluator: Evaluator,
    samples: Iterable[Mapping[str, NDArray[Any]]],
    method: Method = "minmax",
    percent: float = 99.99,
) -> dict[str, Range]:
    """Run every sample through a program and return the range of every variable, inputs included.

    Variables that one `concat` joins share one range, as a device's integer kernels demand. A variable that only goes
    into activations which clamp it, such as ReLU6, has the range that they let through: what lies outside would only
    coarsen its steps.

    Raises:
        DataError: there is no sample.
        UsageError: there is no such method.
        ArtifactError: a sample does not fit the program.
    """
    observer = RangeObserver(method, percent)
    seen = 0
    for sample in samples:
        evaluator(sample, hook=observer)
        for name, array in sample.items():
            if np.asarray(array).dtype.kind == "f":
                observer("input", name, torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))
        seen += 1
    if not seen:
        raise DataError("no sample to measure activation ranges on; give at least one")
    return _tie_concats(evaluator, _clamp(evaluator, observer.ranges()))


def _passed(op: Any) -> tuple[float, float]:
    """Return the interval that an activation passes on unchanged; everything where it is none."""
    if op.op_type == "relu":
        return 0.0, math.inf
    if op.op_type == "relu6":
        return 0.0, 6.0
    if op.op_type == "clip":
        return float(op.alpha.val), float(op.beta.val)
    return -math.inf, math.inf


def _clamp(evaluator: Evaluator, ranges: dict[str, Range]) -> dict[str, Range]:
    """Cut the range of what only clamping activations read."""
    clamped = dict(ranges)
    results = {var.name for var in evaluator.program.body.outputs}
    for op in evaluator.program.body.operations:
        for var in op.outputs:
            if var.name not in ranges or not var.child_ops or var.name in results:
                continue
            passed = [_passed(child) for child in var.child_ops]
            low = max(ranges[var.name].low, min(a for a, _ in passed))
            high = min(ranges[var.name].high, max(b for _, b in passed))
            if low < high:
                clamped[var.name] = Range(low, high)
    return clamped


def _tie_concats(evaluator: Evaluator, ranges: dict[str, Range]) -> dict[str, Range]:
    """Give the inputs and the output of every concat their common range, chains of concats included."""
    group: dict[str, set[str]] = {}
    for op in evaluator.program.body.operations:
        if op.op_type != "concat":
            continue
        names = {var.name for var in (*op.values, *op.outputs)} & ranges.keys()
        joined = set().union(names, *(group[name] for name in names if name in group))
        for name in joined:
            group[name] = joined
    tied = dict(ranges)
    for name, names in group.items():
        tied[name] = Range(min(ranges[n].low for n in names), max(ranges[n].high for n in names))
    return tied
