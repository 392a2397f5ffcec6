"""What the launches of one artifact say of it: latency, cold start, throughput, memory, energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeopt.bench.statistics import Quantity, bootstrap_median, min_samples, percentile, trimmed_mean
from edgeopt.core.measurement import Measurement

BUSY_LOAD = 1.5  # the bench itself keeps one process running


@dataclass(frozen=True)
class Summary:
    """What the samples of one artifact say; times in nanoseconds.

    Attributes:
        median: of one call, with a 95 % bootstrap interval over launches.
        p90, p99: with 99 % bounds by order statistics; None with too few samples, or calls timed in groups.
        throughput_per_s: calls one after another, from the mean.
        cold_start, load, first: median over launches, with the lowest and highest.
        peak_memory_bytes: highest over launches.
        model_memory_bytes: the same without what the process held before it loaded the artifact.
        energy_uj_per_call: of the processor package; None where the machine does not tell.
        spread: standard deviation of the launches' log trimmed means.
        notes: what is missing and why, and what makes the figures doubtful.
    """

    launches: int
    samples: int
    inner_batch: int
    median: Quantity
    p90: Quantity | None
    p99: Quantity | None
    throughput_per_s: float
    cold_start: Quantity | None
    load: Quantity
    first: Quantity
    peak_memory_bytes: int
    model_memory_bytes: int
    energy_uj_per_call: float | None
    spread: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self) | {"notes": list(self.notes)}


def summarize(measurement: Measurement) -> Summary:
    """Derive the statistics of one artifact's launches."""
    launches = measurement.launches
    groups = [np.array(launch.samples[0].per_call_ns()) for launch in launches]
    pooled = np.concatenate(groups)
    inner = max(launch.samples[0].inner_batch for launch in launches)
    notes = []
    p90 = p99 = None
    if inner > 1:
        notes.append(f"calls are timed in groups of up to {inner}, so p90 and p99 are not known")
    else:
        p90, p99 = percentile(pooled, 0.90), percentile(pooled, 0.99)
        if p99 is None:
            needed = min_samples(0.99) if p90 else min_samples(0.90)
            notes.append(f"{'p99' if p90 else 'p90 and p99'}: {len(pooled)} samples, {needed} are needed")
    spread = float(np.std([math.log(trimmed_mean(g)) for g in groups], ddof=1)) if len(groups) > 1 else None
    if spread is not None and spread > math.log(1.1):
        notes.append(f"launches differ by {100 * math.expm1(spread):.0f} % (one standard deviation): compare in pairs")
    load = launches[0].environment.get("load_before")
    if load is not None and load > BUSY_LOAD:
        notes.append(f"load {load:.1f} at the start: other work was running")
    if len({launch.samples[0].output_sha256 for launch in launches}) > 1:
        notes.append("outputs differ from launch to launch")
    calls = sum(len(launch.samples[0].wall_ns) * launch.samples[0].inner_batch for launch in launches)
    energies = [launch.energy_uj for launch in launches if launch.energy_uj is not None]
    if len(energies) < len(launches):
        notes.append("energy: not offered by this machine")
    cold = [launch.cold_start_ns for launch in launches if launch.cold_start_ns is not None]
    return Summary(
        launches=len(launches),
        samples=len(pooled),
        inner_batch=inner,
        median=bootstrap_median(groups),
        p90=p90,
        p99=p99,
        throughput_per_s=float(1e9 / pooled.mean()),
        cold_start=_of_launches(cold) if cold else None,
        load=_of_launches([launch.samples[0].load_ns for launch in launches]),
        first=_of_launches([launch.samples[0].first_ns for launch in launches]),
        peak_memory_bytes=max(launch.peak_memory_bytes for launch in launches),
        model_memory_bytes=max(launch.peak_memory_bytes - launch.memory_before_load_bytes for launch in launches),
        energy_uj_per_call=sum(energies) / calls if len(energies) == len(launches) else None,
        spread=spread,
        notes=tuple(notes),
    )


def _of_launches(values: Sequence[int]) -> Quantity:
    return Quantity(float(np.median(values)), float(min(values)), float(max(values)))
