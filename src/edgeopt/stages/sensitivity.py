"""What quantizing each unit of a network costs: the signal-to-noise ratio and the task's metric, unit by unit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.batched_graph import State
from edgeopt.stages.fake_quantized import Configuration, FakeQuantized, Unit
from edgeopt.stages.judgement import Judge, SampleMetric, Score, decibel
from edgeopt.worker import report

CHUNK_BYTES = 256 << 20
MAX_CHUNK = 16


@dataclass(frozen=True)
class UnitSensitivity:
    """What one unit does.

    Attributes:
        name: what `QuantizationOptions.keep_float` takes.
        kind: `convolution`, `linear`, ..., or the operator's name.
        macs, parameters: of the unit, for one exported batch.
        own_sqnr_db: of the unit's own result when it alone is quantized.
        sqnr_db: of the network's output when it alone is quantized.
        left_out_sqnr_db: of the network's output when all units but this one are quantized.
        metric_drop: of the task's metric when it alone is quantized: of the labelled metric, else of the agreement
            or overlap; None where there is none.
        left_out_gain: of the same metric when it alone is taken out of the quantized network.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    own_sqnr_db: float
    sqnr_db: float
    left_out_sqnr_db: float
    metric_drop: float | None
    left_out_gain: float | None


@dataclass(frozen=True)
class Sensitivity:
    """All units in the order of execution.

    Attributes:
        units: one row each.
        quantized: the whole network quantized, against float.
        metric: name of the metric that `metric_drop` is of: `top-1`, `metric`, `agreement`, `overlap` (of a detector's
            boxes), or None.
        float_metric: its value in float.
        samples: measured on.
        seconds: that it took.
    """

    units: tuple[UnitSensitivity, ...]
    quantized: Score
    metric: str | None
    float_metric: float | None
    samples: int
    seconds: float

    def worst_first(self) -> tuple[UnitSensitivity, ...]:
        """Return the units by the damage each does alone."""
        return tuple(sorted(self.units, key=lambda u: u.sqnr_db))

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)


@dataclass(frozen=True)
class Chunk:
    """Samples that run together; tensors of shape (samples, *exported shape), labels of shape (samples, batch)."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None


def measure_sensitivity(
    program: torch.export.ExportedProgram,
    batches: Iterable[dict[str, np.ndarray]],
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
    labels: Sequence[int] | None = None,
    *,
    task: str = "generic",
    metric: SampleMetric | None = None,
) -> Sensitivity:
    """Quantize each unit alone, and all but each, and compare the outputs with the float network's.

    The graph is calibrated once; each measurement runs the graph only from the first value that changes on.

    Args:
        program: in float, of fixed shapes.
        batches: samples to calibrate and measure on.
        inputs: of the program, in order.
        scheme: `static`, `dynamic` or `weight_only`.
        options: `keep_float` names units that stay out.
        labels: class of each sample, batch by batch.
        task: of the model; decides whether there are classes.
        metric: score of each sample from outputs and labels; top-1 where None.

    Raises:
        ConversionError: nothing can be quantized, or there is no sample.
    """
    network = FakeQuantized(program, scheme, options)
    chunks = stack(batches, inputs, labels, network)
    network.calibrate(chunk.inputs for chunk in chunks)
    return sensitivity_of(network, chunks, Judge.of(network.graph, task, metric))


def sensitivity_of(network: FakeQuantized, chunks: Sequence[Chunk], judge: Judge) -> Sensitivity:
    """Measure a network that is calibrated already."""
    started = time.monotonic()
    names = network.names
    none, every = Configuration(), network.quantized()
    alone = {name: network.only(name) for name in names}
    rest = {name: network.quantized({name}) for name in names}
    tallies = {(kind, name): judge.tally() for kind in ("alone", "rest") for name in names}
    whole, original = judge.tally(), judge.tally()
    own = {name: [0.0, 0.0] for name in names}
    total = 2 * len(names) * len(chunks)
    done = 0
    with torch.no_grad():
        for chunk in chunks:
            reference = network.graph.run(chunk.inputs, none.view)
            original.add(reference, reference, chunk.labels)
            for kind, base, variants in (("alone", none, alone), ("rest", every, rest)):
                for unit, state, outputs in _variants(network, chunk, base, variants):
                    if unit is None:
                        if kind == "rest":
                            whole.add(reference, outputs, chunk.labels)
                        continue
                    tallies[kind, unit.name].add(reference, outputs, chunk.labels)
                    if kind == "alone":
                        signal, noise = _own_error(network, unit, none, variants[unit.name], state)
                        own[unit.name][0] += signal
                        own[unit.name][1] += noise
                    done += 1
                    if done % 8 == 0 or done == total:
                        left = (time.monotonic() - started) / done * (total - done)
                        report(f"measuring {done}/{total}, about {left:.0f} s left")
    before, after = original.score().task_metric(), whole.score().task_metric()
    rows = []
    for unit in network.units:
        single, others = tallies["alone", unit.name].score(), tallies["rest", unit.name].score()
        rows.append(
            UnitSensitivity(
                unit.name,
                unit.kind,
                unit.macs,
                unit.parameters,
                decibel(*own[unit.name]),
                single.snr_db,
                others.snr_db,
                _difference(before, single.task_metric()),
                _difference(others.task_metric(), after),
            )
        )
    labelled = all(chunk.labels is not None for chunk in chunks)
    samples = sum(len(chunk.inputs[0]) for chunk in chunks)
    named = metric_name(judge, labelled)
    return Sensitivity(tuple(rows), whole.score(), named, before, samples, round(time.monotonic() - started, 2))


def stack(
    batches: Iterable[dict[str, np.ndarray]],
    inputs: tuple[TensorSpec, ...],
    labels: Sequence[int] | None,
    network: FakeQuantized,
) -> list[Chunk]:
    """Return the samples in chunks of at most 16, fewer where their activations would need more than 256 MiB.

    Raises:
        ConversionError: there is no sample.
    """
    size = max(1, min(MAX_CHUNK, CHUNK_BYTES // max(1, _largest_bytes(network))))
    gathered = [tuple(torch.from_numpy(np.asarray(batch[s.name])) for s in inputs) for batch in batches]
    if not gathered:
        raise ConversionError("sensitivity is measured on samples: the data gives none")
    width = gathered[0][0].shape[0]
    known = labels is not None and len(labels) >= (len(gathered) - 1) * width + 1 and min(labels) >= 0
    chunks = []
    for start in range(0, len(gathered), size):
        part = gathered[start : start + size]
        truth = None
        if known and labels is not None:
            own = list(labels[start * width : (start + len(part)) * width])
            own += [own[-1]] * (len(part) * width - len(own))
            truth = torch.tensor(own).reshape(len(part), width)
        chunks.append(Chunk(tuple(torch.stack(tensors) for tensors in zip(*part, strict=True)), truth))
    return chunks


def metric_name(judge: Judge, labelled: bool) -> str | None:
    """Return what the task's metric is called."""
    if judge.metric is not None and labelled:
        return "top-1" if judge.metric.__name__ == "top1" else "metric"
    if judge.boxes:
        return "overlap"
    return "agreement" if judge.classes else None


def _variants(
    network: FakeQuantized, chunk: Chunk, base: Configuration, variants: dict[str, Configuration]
) -> Iterator[tuple[Unit | None, State, tuple[torch.Tensor, ...]]]:
    """Run the base once, and each variant from the first value that differs; last comes the base itself.

    Yields the unit (None for the base), the base's state where the variant left it, and the variant's outputs.
    """
    graph = network.graph
    places = sorted((network.first_difference(base, variants[u.name]), i) for i, u in enumerate(network.units))
    state = graph.start(chunk.inputs)
    for place, index in places:
        unit = network.units[index]
        graph.advance(state, place, base.view)
        fork = state.fork()
        view = variants[unit.name].view
        graph.advance(fork, len(graph.nodes), view)
        yield unit, state, graph.outputs(fork, view)
    graph.advance(state, len(graph.nodes), base.view)
    yield None, state, graph.outputs(state, base.view)


def _own_error(
    network: FakeQuantized, unit: Unit, base: Configuration, single: Configuration, state: State
) -> tuple[float, float]:
    """Return signal and noise of the unit's result, which is seen by its consumers as `single` quantizes it."""
    graph = network.graph
    stop = graph.index[unit.end] + 1
    consumer = next(iter(unit.end.users))
    seen = []
    for configuration in (base, single):
        fork = state.fork()
        graph.advance(fork, stop, configuration.view)
        seen.append(graph.read(fork, unit.end, consumer, configuration.view).double())
    return float(seen[0].square().sum()), float((seen[0] - seen[1]).square().sum())


def _largest_bytes(network: FakeQuantized) -> int:
    sizes = [n.meta["val"].numel() * 4 for n in network.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return 4 * max(sizes, default=1)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
