"""Measures artifacts on a device: launch by launch, and where two are compared, in pairs until a verdict holds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeopt import plugins, steps
from edgeopt.bundle.folder import MANIFEST
from edgeopt.bundle.reading import Bundle, open_bundle
from edgeopt.cache import file_sha256
from edgeopt.context import Context, Progress, Silent
from edgeopt.core.device import Device
from edgeopt.core.errors import ArtifactError, CancelledRunError, EdgeoptError, UsageError
from edgeopt.core.measurement import Launch, MeasuredArtifact, Measurement, PairedMeasurement

Document = dict[str, Any]
ENGINES = {"onnx": "onnxruntime", "litert": "litert", "executorch": "executorch"}
LAUNCHES = 7
MIN_LAUNCHES = 3
PAIRS = 40
SAMPLES = 300
SOLO_SECONDS = 1.0
MAX_SECONDS = 60.0
TIMEOUT_S = 600.0
STORED_INPUTS = "inputs.npz"
NO_LATENCY = (
    "Core ML packages run on Apple's devices only; here the project's own evaluator executes them, whose time says "
    "nothing of a device"
)


@dataclass(frozen=True)
class Request:
    """How to measure.

    Attributes:
        threads: of the engine.
        launches: processes to start; a comparison may start more.
        pairs: calls of each artifact in one launch of a comparison.
        max_seconds: for one artifact or one comparison. A launch that has begun is ended.
        inputs: an `.npz` of arrays by input name; else the bundle's own `inputs.npz`, else seeded random ones.
        max_ratio, min_effect: see `bench.statistics.Comparison`.
        timeout_s: of one launch.
    """

    threads: int = 1
    launches: int = LAUNCHES
    pairs: int = PAIRS
    max_seconds: float = MAX_SECONDS
    inputs: Path | None = None
    max_ratio: float | None = None
    min_effect: float = 0.025
    timeout_s: float = TIMEOUT_S


def bench(names: tuple[Path, ...], context: Context, request: Request, *, on: str, against: Path | None) -> Document:
    """Measure every artifact of bundles and files; with `against`, each in pairs with its counterpart there.

    An artifact that fails is listed under `failures` and does not lose the others.

    Raises:
        UsageError: no such file, bundle or device; a format whose latency cannot be measured, where nothing else was
            named; or nothing to compare with.
    """
    from edgeopt.bench.latency import summarize  # numpy is loaded only where it is needed
    from edgeopt.bench.statistics import compare_measurement

    found = [artifact for name in names for artifact in _artifacts(name)]
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in found]
    if against is not None:
        pairs = _counterparts(found, against)
    measurable = [(path, other) for path, other in pairs if _engine(path) and (other is None or _engine(other))]
    unmeasured = [path for path in found if path not in [p for p, _ in measurable]]
    reasons = [NO_LATENCY if _engine(p) is None else f"{against} has no measurable counterpart" for p in unmeasured]
    if not measurable:
        raise UsageError(f"{unmeasured[0]}: {reasons[0]}" if unmeasured else f"{names[0]}: holds no artifact")
    document: Document = {
        "edgeopt": version("edgeopt"),
        "on": on,
        "measurements": [],
        "comparisons": [],
        "not_measured": [{"path": str(p), "reason": r} for p, r in zip(unmeasured, reasons, strict=True)],
        "failures": [],
    }
    device = open_device(on, context)
    try:
        document["device"] = device.probe()
        for path, other in measurable:
            try:
                if other is None:
                    solo = measure_latency(path, device, request, logs=context.logs, progress=context.progress)
                    document["measurements"].append(solo.to_json() | {"summary": summarize(solo).to_json()})
                else:
                    pair = compare_latency(path, other, device, request, logs=context.logs, progress=context.progress)
                    document["comparisons"].append(pair.to_json() | {"summary": compare_measurement(pair).to_json()})
            except (CancelledRunError, UsageError):
                raise
            except EdgeoptError as error:
                context.progress.finish(path.name, str(error.args[0]), ok=False)
                document["failures"].append({"path": str(path), "reason": str(error.args[0]), "log": error.log})
    finally:
        device.cleanup()
    return document


def open_device(on: str, context: Context) -> Device:
    """Return the device that `--on` names: `local`, or `KIND:ADDRESS`.

    Raises:
        UsageError: there is none of that kind.
        DeviceError: it cannot be reached.
    """
    kind, _, address = on.partition(":")
    device: Device = plugins.find("devices", kind).connect(address, limits=context.limits, cancel=context.cancel)
    return device


def measure_latency(
    artifact: Path, device: Device, request: Request, *, logs: Path, progress: Progress | None = None
) -> Measurement:
    """Launch one artifact several times; at least once, and no more when the time is over.

    Raises:
        UsageError: the artifact's latency cannot be measured, or the inputs do not fit.
        ArtifactError: it is damaged or crashes its engine.
        DeviceError: the device failed.
    """
    launcher = _Launcher((artifact,), device, request, logs, progress or Silent())
    while len(launcher.launches) < request.launches and (not launcher.launches or launcher.has_time):
        launcher.launch({"mode": "solo", "samples": SAMPLES, "seconds": SOLO_SECONDS})
    measurement = Measurement(
        launcher.measured[0], device.name, request.threads, launcher.told_inputs, tuple(launcher.launches)
    )
    launcher.finish(f"{len(launcher.launches)} launches")
    return measurement


def compare_latency(
    artifact: Path,
    against: Path,
    device: Device,
    request: Request,
    *,
    logs: Path,
    progress: Progress | None = None,
) -> PairedMeasurement:
    """Launch both in pairs; more launches follow while the verdict is inconclusive and time is left.

    Raises:
        UsageError: the latency of one cannot be measured, or the inputs do not fit.
        ArtifactError: one is damaged or crashes its engine.
        DeviceError: the device failed.
    """
    from edgeopt.bench.statistics import compare

    launcher = _Launcher((artifact, against), device, request, logs, progress or Silent())
    target = max(request.launches, MIN_LAUNCHES)
    seconds = max(SOLO_SECONDS, request.max_seconds / target / 2)
    looks: list[int] = []
    while True:
        while len(launcher.launches) < MIN_LAUNCHES or (len(launcher.launches) < target and launcher.has_time):
            launcher.launch({"mode": "pair", "samples": request.pairs, "seconds": seconds}, of=target)
        looks.append(len(launcher.launches))
        found = compare(launcher.launches, max_ratio=request.max_ratio, min_effect=request.min_effect, looks=len(looks))
        if found.conclusive or not launcher.has_time:
            break
        target += max(MIN_LAUNCHES, target // 2)
    launcher.finish(f"{found.ratio:.3f} of its time: {found.gate or found.verdict}")
    return PairedMeasurement(
        launcher.measured[0],
        launcher.measured[1],
        device.name,
        request.threads,
        launcher.told_inputs,
        tuple(launcher.launches),
        tuple(looks),
        request.max_ratio,
        request.min_effect,
    )


class _Launcher:
    """Starts the runner for the same artifacts again and again, and keeps the time."""

    def __init__(
        self, artifacts: tuple[Path, ...], device: Device, request: Request, logs: Path, progress: Progress
    ) -> None:
        self.measured = tuple(described(path) for path in artifacts)
        self.launches: list[Launch] = []
        self._device, self._request, self._progress = device, request, progress
        self._name = " against ".join(path.name for path in artifacts)
        self._log = logs / f"bench-{artifacts[0].name}.log"
        inputs = request.inputs or _stored_inputs(artifacts[0])
        if inputs is not None and not inputs.is_file():
            raise UsageError(f"{inputs}: no such file")
        self.told_inputs = "random" if inputs is None else str(inputs)
        self._job: Document = {
            "threads": request.threads,
            "inputs": device.push(inputs) if inputs is not None else None,
            "artifacts": [
                {"path": device.push(path), "engine": ENGINES[measured.format]}
                for path, measured in zip(artifacts, self.measured, strict=True)
            ],
        }
        self._started = time.monotonic()

    @property
    def has_time(self) -> bool:
        """Whether another launch would end in time, as far as those before tell."""
        spent = time.monotonic() - self._started
        return spent + spent / max(1, len(self.launches)) <= self._request.max_seconds

    def launch(self, settings: Document, of: int | None = None) -> None:
        """Start the runner once more."""
        number = len(self.launches) + 1
        total = of or self._request.launches
        self._progress.update(self._name, f"{'launch' if total <= self._request.launches else 'more'} {number}/{total}")
        # Every other launch loads the artifacts in the other order: what a first or second place in memory brings is
        # then shared by both.
        turn = -1 if number % 2 == 0 else 1
        job = self._job | settings | {"artifacts": self._job["artifacts"][::turn]}
        result = self._device.run(job, what=f"timing {self._name}", timeout_s=self._request.timeout_s, log=self._log)
        record = result["launch"]
        self.launches.append(Launch.from_json(record | {"samples": record["samples"][::turn]}))

    def finish(self, told: str) -> None:
        """Show the outcome."""
        self._progress.finish(self._name, told, ok=True)


def described(path: Path) -> MeasuredArtifact:
    """Return what identifies an artifact; its precision is that of the bundle it lies in.

    Raises:
        UsageError: no artifact, or one whose latency cannot be measured.
        ArtifactError: it is not the file that its bundle's manifest describes.
    """
    form = steps.artifact_format(path)
    if form.name not in ENGINES:
        raise UsageError(f"{path}: {NO_LATENCY}")
    digest = file_sha256(path)
    precision = "unknown"
    if (path.parent / MANIFEST).is_file():
        records = [r for r in open_bundle(path.parent).artifacts if r["path"] == path.name]
        if records and records[0]["sha256"] != digest:
            raise ArtifactError(f"{path}: is not the file that {MANIFEST} beside it describes (sha256 differs)")
        precision = str(records[0]["precision"]) if records else precision
    return MeasuredArtifact(str(path), form.name, precision, digest, path.stat().st_size)


def _artifacts(name: Path) -> list[Path]:
    if name.suffix == ".mlpackage" or (not name.is_dir() and name.name != MANIFEST):
        steps.artifact_format(name)
        return [name]
    bundle = open_bundle(name)
    return [bundle.path(record) for record in bundle.artifacts]


def _engine(path: Path) -> str | None:
    return ENGINES.get(steps.artifact_format(path).name)


def _counterparts(found: list[Path], against: Path) -> list[tuple[Path, Path | None]]:
    """Return each artifact with what it is compared with; those without a counterpart are left out."""
    others = _artifacts(against)
    if len(others) == 1 and not against.is_dir():
        return [(path, others[0]) for path in found]
    kinds = {_kind(path): path for path in others}
    return [(path, kinds[_kind(path)]) for path in found if _kind(path) in kinds]


def _kind(path: Path) -> tuple[str, str]:
    form = steps.artifact_format(path)
    bundle: Bundle | None = open_bundle(path.parent) if (path.parent / MANIFEST).is_file() else None
    records = [r for r in bundle.artifacts if r["path"] == path.name] if bundle else []
    return form.name, str(records[0]["precision"]) if records else "unknown"


def _stored_inputs(artifact: Path) -> Path | None:
    place = artifact.parent / STORED_INPUTS
    return place if place.is_file() and (artifact.parent / MANIFEST).is_file() else None
