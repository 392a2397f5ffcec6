"""Which units must stay in float so that a quantized network keeps its accuracy: the fewest and cheapest that do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.fake_quantized import Configuration, FakeQuantized
from edgeopt.stages.judgement import Judge, Outputs, SampleMetric, Score
from edgeopt.stages.sensitivity import Chunk, Sensitivity, sensitivity_of, stack
from edgeopt.worker import report

RANKING_SAMPLES = 32


@dataclass(frozen=True)
class Tolerance:
    """What quantization may cost.

    Attributes:
        max_drop: of the task's metric, as top-1 accuracy over labelled samples.
        min_agreement: share of the same top-1 answers, where there are classes but no labels; of a detector, overlap
            of its boxes (`Score.overlap`).
        min_snr_db: of the worst output, where there are no classes; of a detector too.
    """

    max_drop: float = 0.01
    min_agreement: float = 0.99
    min_snr_db: float = 20.0

    def allows(self, original: Score, quantized: Score) -> bool:
        """Tell whether a quantized network is good enough."""
        if original.metric is not None and quantized.metric is not None:
            return original.metric - quantized.metric <= self.max_drop + 1e-9
        if quantized.agreement is not None:
            return quantized.agreement >= self.min_agreement - 1e-9
        if quantized.overlap is not None and quantized.overlap < self.min_agreement - 1e-9:
            return False
        return quantized.snr_db >= self.min_snr_db


@dataclass(frozen=True)
class Trial:
    """One set of units that was tried in float.

    Attributes:
        keep_float: their names.
        score: of the network on the calibration samples.
        allowed: within the tolerance.
    """

    keep_float: tuple[str, ...]
    score: Score
    allowed: bool


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Attributes:
        keep_float: names of the units to leave in float, in the order of execution.
        steps: what was tried, in order.
        original: the float network on the calibration samples.
        before: all units quantized.
        after: all but those kept.
        reached: whether `after` is within the tolerance.
        macs_share, parameters_share: of the units kept, among all units.
        held_out_original, held_out_before, held_out_after: the same three on samples that neither calibrated nor
            steered the search; None where none were given.
    """

    keep_float: tuple[str, ...]
    steps: tuple[Trial, ...]
    original: Score
    before: Score
    after: Score
    reached: bool
    macs_share: float
    parameters_share: float
    held_out_original: Score | None = None
    held_out_before: Score | None = None
    held_out_after: Score | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)


def choose_float_layers(
    program: torch.export.ExportedProgram,
    batches: Iterable[dict[str, np.ndarray]],
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
    tolerance: Tolerance | None = None,
    labels: Sequence[int] | None = None,
    *,
    task: str = "generic",
    metric: SampleMetric | None = None,
    held_out: Iterable[dict[str, np.ndarray]] = (),
    held_out_labels: Sequence[int] | None = None,
) -> Choice:
    """Return the units to leave in float, found on `batches` and judged on `held_out` as well.

    Units are ranked twice, by the damage that each does alone and by what the quantized network gains without it, per
    price. In each ranking the shortest sufficient prefix is found by doubling and bisection; then units that turn out
    not to be needed are taken back, the dearest first. The cheaper of the two results counts. A unit's price is a fixed
    part, since each island in float converts its inputs and outputs, and its share of multiply-accumulates and of
    weights. A network that is within the tolerance as it is keeps no unit in float and is not measured unit by unit.

    Args:
        program: in float, of fixed shapes.
        batches: samples to calibrate on and to steer the search.
        inputs: of the program, in order.
        scheme: `static`, `dynamic` or `weight_only`.
        options: `keep_float` names units that stay in float in any case.
        tolerance: what may be lost.
        labels, held_out_labels: class of each sample, batch by batch.
        task: of the model; decides whether there are classes.
        metric: score of each sample from outputs and labels; top-1 where None.
        held_out: samples to report on.

    Raises:
        ConversionError: nothing can be quantized, or there is no sample.
    """
    network = FakeQuantized(program, scheme, options)
    chunks = stack(batches, inputs, labels, network)
    report("calibrating")
    network.calibrate(chunk.inputs for chunk in chunks)
    judge = Judge.of(network.graph, task, metric)
    choice = search(network, chunks, judge, tolerance or Tolerance())
    others = list(held_out)
    if not others:
        return choice
    return judged_on(choice, network, stack(others, inputs, held_out_labels, network), judge)


def _first(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return as many samples as it takes to rank units; whether a set of them is enough is judged on all."""
    found: list[Chunk] = []
    for chunk in chunks:
        found.append(chunk)
        if sum(len(c.inputs[0]) for c in found) >= RANKING_SAMPLES:
            break
    return found


def score_of(
    quantized: FakeQuantized, original: FakeQuantized, chunks: Sequence[Chunk], judge: Judge
) -> tuple[Score, Score]:
    """Return the scores of the float network, and of a conditioned copy of it with all its units quantized."""
    references = [_outputs(original, chunk, None) for chunk in chunks]
    return (
        _score(original, chunks, references, judge, None),
        _score(quantized, chunks, references, judge, ()),
    )


def judged_on(choice: Choice, network: FakeQuantized, chunks: Sequence[Chunk], judge: Judge) -> Choice:
    """Return the choice with its scores on samples that did not steer it."""
    report("measuring on held-out samples")
    references = [_outputs(network, chunk, None) for chunk in chunks]
    original, before, after = (
        _score(network, chunks, references, judge, kept) for kept in (None, (), choice.keep_float)
    )
    return replace(choice, held_out_original=original, held_out_before=before, held_out_after=after)


def search(
    network: FakeQuantized,
    chunks: Sequence[Chunk],
    judge: Judge,
    tolerance: Tolerance,
    measured: Sensitivity | None = None,
) -> Choice:
    """Search a network that is calibrated; `measured` saves measuring its units again."""
    references = [_outputs(network, chunk, None) for chunk in chunks]
    original = _score(network, chunks, references, judge, None)
    trials: dict[frozenset[str], Trial] = {}

    def allowed(kept: Iterable[str]) -> bool:
        key = frozenset(kept)
        if key not in trials:
            score = _score(network, chunks, references, judge, key)
            trials[key] = Trial(tuple(n for n in network.names if n in key), score, tolerance.allows(original, score))
            report(f"trying {len(key)} units in float")
        return trials[key].allowed

    prices = _prices(network)
    found: frozenset[str] = frozenset()
    if not allowed(()):
        rankings = _rankings(measured or sensitivity_of(network, _first(chunks), judge), prices, tolerance)
        results = [_pruned(_prefix(order, allowed), prices, allowed) for order in rankings]
        found = min(results, key=lambda kept: (sum(prices[n] for n in kept), sorted(kept)))
        allowed(found)
    last = trials[found]
    before = trials[frozenset()].score
    macs, parameters = _shares(network, found)
    return Choice(last.keep_float, tuple(trials.values()), original, before, last.score, last.allowed, macs, parameters)


def _score(
    network: FakeQuantized,
    chunks: Sequence[Chunk],
    references: Sequence[Outputs],
    judge: Judge,
    keep_float: Collection[str] | None,
) -> Score:
    """Return the score of the network quantized but for some units; in float altogether where None."""
    tally = judge.tally()
    for chunk, reference in zip(chunks, references, strict=True):
        actual = reference if keep_float is None else _outputs(network, chunk, network.quantized(keep_float))
        tally.add(reference, actual, chunk.labels)
    return tally.score()


def _outputs(network: FakeQuantized, chunk: Chunk, configuration: Configuration | None) -> Outputs:
    with torch.no_grad():
        return network.graph.run(chunk.inputs, configuration.view if configuration else None)


def _prices(network: FakeQuantized) -> dict[str, float]:
    """Return what each unit costs in float; all together cost 2."""
    macs = sum(u.macs for u in network.units) or 1
    parameters = sum(u.parameters for u in network.units) or 1
    fixed = 1 / len(network.units)
    return {u.name: fixed + (u.macs / macs + u.parameters / parameters) / 2 for u in network.units}


def _rankings(measured: Sensitivity, prices: dict[str, float], tolerance: Tolerance) -> list[list[str]]:
    """Return the units by what quantizing them costs per price, the worst first.

    Where a detector's overlap is limited as well as its noise, each counts in parts of what is allowed.
    """
    everything = _noise(measured.quantized.snr_db)
    alone = {u.name: _noise(u.sqnr_db) for u in measured.units}
    gained = {u.name: everything - _noise(u.left_out_sqnr_db) for u in measured.units}
    if measured.quantized.overlap is not None:
        noise, loss = _noise(tolerance.min_snr_db), max(1e-6, 1 - tolerance.min_agreement)
        for u in measured.units:
            alone[u.name] = alone[u.name] / noise + (u.metric_drop or 0.0) / loss
            gained[u.name] = gained[u.name] / noise + (u.left_out_gain or 0.0) / loss

    def order(damage: dict[str, float]) -> list[str]:
        return sorted(prices, key=lambda name: -damage[name] / prices[name])

    return [order(alone), order(gained)]


def _noise(decibels: float) -> float:
    return float(10 ** (-decibels / 10))


def _prefix(order: list[str], allowed: Callable[[Iterable[str]], bool]) -> list[str]:
    """Return the shortest prefix that is allowed, as doubling and bisection find it; all units where none is."""
    short, long = 0, 1
    while long < len(order) and not allowed(order[:long]):
        short, long = long, 2 * long
    long = min(long, len(order))
    while long - short > 1:
        middle = (short + long) // 2
        if allowed(order[:middle]):
            long = middle
        else:
            short = middle
    return order[:long]


def _pruned(kept: list[str], prices: dict[str, float], allowed: Callable[[Iterable[str]], bool]) -> frozenset[str]:
    """Take back what is not needed: halves, quarters, ... of the units and at last single ones, the dearest first."""
    left = sorted(kept, key=lambda n: -prices[n])
    size = max(1, len(left) // 2)
    while True:
        start = 0
        while start < len(left):
            without = left[:start] + left[start + size :]
            if without and allowed(without):
                left = without
            else:
                start += size
        if size == 1:
            return frozenset(left)
        size //= 2


def _shares(network: FakeQuantized, kept: frozenset[str]) -> tuple[float, float]:
    units = [u for u in network.units if u.name in kept]
    macs = sum(u.macs for u in network.units)
    parameters = sum(u.parameters for u in network.units)
    return (
        sum(u.macs for u in units) / macs if macs else 0.0,
        sum(u.parameters for u in units) / parameters if parameters else 0.0,
    )
