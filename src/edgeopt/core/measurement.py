"""Raw samples of what was measured, and where; statistics are derived from them (`bench/statistics.py`), never stored.

One launch is one process on the measured device. It runs one artifact (solo) or two in turns (pair). A sample is the
time of `inner_batch` calls one after another: 1, unless one call is too short for the clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MeasuredArtifact:
    """Which file was measured.

    Attributes:
        path: as the user named it.
        format: `onnx`, `litert`, `executorch`.
        precision: as its bundle says; `unknown` for a file without a bundle.
        sha256: of the file.
        size_bytes: of the file.
    """

    path: str
    format: str
    precision: str
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Format and precision, as progress and tables show it."""
        return self.format if self.precision == "unknown" else f"{self.format} {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> MeasuredArtifact:
        """Inverse of `to_json`."""
        return cls(**record)


@dataclass(frozen=True)
class Samples:
    """One artifact's calls in one launch.

    Attributes:
        wall_ns, cpu_ns: of each sample: the clock, and the processor time of the whole process. Both of `inner_batch`
            calls.
        inner_batch: calls in one sample.
        warm_up_ns: wall time of each untimed call before them.
        load_ns: from the file to a session that can be called.
        first_ns: the first call.
        output_sha256: of the outputs' dtypes, shapes and bytes.
    """

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    inner_batch: int
    warm_up_ns: tuple[int, ...]
    load_ns: int
    first_ns: int
    output_sha256: str

    def per_call_ns(self) -> list[float]:
        """Return the wall time of one call, sample by sample."""
        return [wall / self.inner_batch for wall in self.wall_ns]

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in vars(self).items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Samples:
        """Inverse of `to_json`."""
        lists = {name: tuple(record[name]) for name in ("wall_ns", "cpu_ns", "warm_up_ns")}
        return cls(**{**record, **lists})


@dataclass(frozen=True)
class Launch:
    """One process.

    Attributes:
        samples: of the artifact; in pair mode of the artifact and of the one it is compared with.
        import_ns: to import numpy and the engine.
        cold_start_ns: from the start of the process to the first output; None in pair mode.
        memory_before_load_bytes: resident once the engine is imported.
        peak_memory_bytes: highest resident size; in pair mode of both artifacts together.
        energy_uj: of the processor package during the timed samples; None where the machine does not tell.
        environment: processor, frequency, load, temperature, versions, threads, delegates.
    """

    samples: tuple[Samples, ...]
    import_ns: int
    cold_start_ns: int | None
    memory_before_load_bytes: int
    peak_memory_bytes: int
    energy_uj: int | None
    environment: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return vars(self) | {"samples": [s.to_json() for s in self.samples]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Launch:
        """Inverse of `to_json`."""
        return cls(**{**record, "samples": tuple(Samples.from_json(s) for s in record["samples"])})


@dataclass(frozen=True)
class Measurement:
    """One artifact, launched several times.

    Attributes:
        artifact: the file.
        device: as `--on` names it.
        threads: of the engine.
        inputs: `random` (seeded), or the file that the inputs came from.
        launches: in the order they ran.
    """

    artifact: MeasuredArtifact
    device: str
    threads: int
    inputs: str
    launches: tuple[Launch, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "artifact": self.artifact.to_json(),
            "device": self.device,
            "threads": self.threads,
            "inputs": self.inputs,
            "launches": [launch.to_json() for launch in self.launches],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """Inverse of `to_json`; a derived `summary` in the record is passed over."""
        return cls(
            artifact=MeasuredArtifact.from_json(record["artifact"]),
            device=record["device"],
            threads=record["threads"],
            inputs=record["inputs"],
            launches=tuple(Launch.from_json(launch) for launch in record["launches"]),
        )


@dataclass(frozen=True)
class PairedMeasurement:
    """Two artifacts, timed in turns in the same processes.

    Attributes:
        artifact, against: the files; every launch has the samples of both, in this order.
        device, threads, inputs: as in `Measurement`.
        launches: in the order they ran.
        looks: launches done each time a verdict was sought; more than one where the first was inconclusive. The test's
            error rate is shared out over them.
        max_ratio: the limit that the verdicts were sought for; None where there was none.
        min_effect: the smallest difference that counts, as a share.
    """

    artifact: MeasuredArtifact
    against: MeasuredArtifact
    device: str
    threads: int
    inputs: str
    launches: tuple[Launch, ...]
    looks: tuple[int, ...]
    max_ratio: float | None = None
    min_effect: float = 0.025

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "artifact": self.artifact.to_json(),
            "against": self.against.to_json(),
            "device": self.device,
            "threads": self.threads,
            "inputs": self.inputs,
            "launches": [launch.to_json() for launch in self.launches],
            "looks": list(self.looks),
            "max_ratio": self.max_ratio,
            "min_effect": self.min_effect,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> PairedMeasurement:
        """Inverse of `to_json`; a derived `summary` in the record is passed over."""
        return cls(
            artifact=MeasuredArtifact.from_json(record["artifact"]),
            against=MeasuredArtifact.from_json(record["against"]),
            device=record["device"],
            threads=record["threads"],
            inputs=record["inputs"],
            launches=tuple(Launch.from_json(launch) for launch in record["launches"]),
            looks=tuple(record["looks"]),
            max_ratio=record["max_ratio"],
            min_effect=record["min_effect"],
        )
