"""The steps of the pipeline: each runs one task in a worker and hands on files in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeopt.context import Context
from edgeopt.core.detection import METRICS
from edgeopt.core.errors import (
    ArtifactError,
    CancelledRunError,
    EdgeoptError,
    OutputError,
    SourceError,
    UsageError,
)
from edgeopt.core.formats import FORMATS, Format, format_of_file
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, coreml_arithmetic, scheme_of
from edgeopt.core.target import Target
from edgeopt.scratch import ScratchFolder, sweep
from edgeopt.worker import Worker

Document = dict[str, Any]
MIN_FREE_BYTES = 1 << 20
SPEED_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """The model a user names, with the options that apply to naming it."""

    name: str
    arch: str | None = None
    trust: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to make of it: every format in every precision, for one target."""

    formats: tuple[Format, ...]
    precisions: tuple[str, ...]
    target: Target | None = None
    data: str | None = None
    samples: int = 32
    calibration_samples: int = 100
    min_snr_db: float | None = None
    min_agreement: float | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    compares_speed: bool = True
    nms: bool = False
    detection: Document = field(default_factory=dict)

    @property
    def calibrates(self) -> bool:
        """Whether any precision is better for calibration inputs."""
        kinds = {scheme_of(p).kind for p in self.precisions}
        return self.calibration_samples > 0 and bool(kinds & {"static", "dynamic", "weight_only"})

    @property
    def must_calibrate(self) -> bool:
        """Whether any precision cannot do without calibration inputs."""
        return self.calibrates and any(scheme_of(p).kind == "static" for p in self.precisions)


@dataclass(frozen=True)
class Workshop:
    """Where one command works: its context and a folder of temporary files."""

    context: Context
    folder: Path

    def worker(self, threads: int | None = None, environment: dict[str, str] | None = None) -> Worker:
        """Return a new worker under the command's limits."""
        return Worker(threads=threads, environment=environment, limits=self.context.limits, cancel=self.context.cancel)

    def worker_for(self, source: Source) -> Worker:
        """Return a worker to open what the user named: without trust it unpickles no code."""
        return self.worker(environment={} if source.trust else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"})

    def call(
        self, worker: Worker, name: str, task: str, arguments: Document, *, what: str, failure: type[EdgeoptError]
    ) -> Any:
        """Run one task, shown under `name`."""
        return worker.call(
            f"edgeopt.tasks.{task}",
            arguments,
            what=what,
            log=self.context.logs / f"{name.replace(' ', '-')}.log",
            failure=failure,
            progress=lambda line: self.context.progress.update(name, line),
        )


@contextlib.contextmanager
def dispensable() -> Iterator[None]:
    """Let what a result can do without fail; a run that was stopped stays stopped."""
    try:
        yield
    except CancelledRunError:
        raise
    except EdgeoptError:
        return


@contextlib.contextmanager
def workshop(context: Context, *places: Path) -> Iterator[Workshop]:
    """Yield a workshop; an error of a converter that a full disk caused is told as that."""
    sweep("edgeopt-")
    with ScratchFolder("edgeopt-") as folder:
        try:
            yield Workshop(context, folder)
        except EdgeoptError as error:
            raise blame_full_disk(error, folder, *places) from error


def blame_full_disk(error: EdgeoptError, *places: Path) -> EdgeoptError:
    """Return the error, or what it really was: converters fail in ways of their own when the disk is full."""
    for place in places:
        if shutil.disk_usage(place).free < MIN_FREE_BYTES and not isinstance(error, OutputError):
            return OutputError(f"{place.parent}: no space left on the disk", log=error.log)
    return error


def prepare(work: Workshop, worker: Worker, source: Source, what: Plan) -> Document:
    """Load the model, export it once, and store inputs to calibrate and verify on."""
    arguments = _naming(source) | {
        "data": what.data,
        "samples": what.samples,
        "calibration_samples": what.calibration_samples if what.calibrates else 0,
        "must_calibrate": what.must_calibrate,
        "detection": what.detection,
        "nms": what.nms,
        "folder": str(work.folder),
    }
    told = f"loading {source.name}"
    result: Document = work.call(worker, "model", "prepare:prepare", arguments, what=told, failure=SourceError)
    work.context.progress.finish("model", f"{result['model']['parameters']:,} parameters", ok=True)
    return result


def run_reference(work: Workshop, worker: Worker, prepared: Document) -> None:
    """Run the exported original on the stored inputs; its outputs are what every artifact is compared with."""
    arguments = {
        "runtime": "torch",
        "artifact": str(work.folder / "program.pt2"),
        "inputs": prepared["model"]["inputs"],
        "outputs": prepared["model"]["outputs"],
        "inputs_folder": str(work.folder / "inputs"),
        "folder": str(work.folder / "reference"),
        "options": {"threads": 1},
    }
    what = f"running {prepared['model']['name']} in PyTorch"
    work.call(worker, "original", "execute:execute", arguments, what=what, failure=SourceError)
    work.context.progress.finish("original", f"{prepared['data']['verified']} samples", ok=True)


def prepare_artifact(
    work: Workshop, path: Path, form: Format, what: Plan, shapes: tuple[tuple[int, ...], ...], card: Path | None = None
) -> Document:
    """Take an artifact as the original: store inputs and its outputs."""
    artifact_format(path)
    arguments = {
        "artifact": str(path),
        "runtime": form.runtime,
        "data": what.data,
        "samples": what.samples,
        "shapes": [list(s) for s in shapes],
        "card": str(card) if card else None,
        "folder": str(work.folder),
    }
    with work.worker(threads=work.context.jobs) as worker:
        result: Document = work.call(
            worker, "reference", "reference:reference", arguments, what=f"running {path.name}", failure=ArtifactError
        )
    work.context.progress.finish("reference", f"{result['data']['verified']} samples", ok=True)
    return result


def execute(
    work: Workshop,
    worker: Worker,
    name: str,
    form: Format,
    path: Path,
    prepared: Document,
    precision: str,
    outputs: list[Document] | None = None,
) -> Document:
    """Run an artifact on the stored inputs; its outputs are stored too.

    Args:
        work, worker: where.
        name: of the folder that outputs are stored in, and shown.
        form, path, precision: of the artifact.
        prepared: the original and its inputs.
        outputs: that the artifact gives, where they are others than the original's.

    Raises:
        ArtifactError: it cannot be executed, or its inputs and outputs are not the original's.
    """
    arguments = {
        "runtime": form.runtime,
        "artifact": str(path),
        "inputs": prepared["model"]["inputs"],
        "outputs": prepared["model"]["outputs"] if outputs is None else outputs,
        "inputs_folder": str(work.folder / "inputs"),
        "folder": str(work.folder / folder_named(name)),
        "options": {"precision": coreml_arithmetic(precision)} if form.name == "coreml" else {},
    }
    what = f"running {path.name}"
    ran: Document = work.call(worker, name, "execute:execute", arguments, what=what, failure=ArtifactError)
    return ran


def compare(
    work: Workshop,
    name: str,
    path: Path,
    prepared: Document,
    what: Plan,
    precision: str,
    ran: Document,
    bundle: Path | None = None,
) -> Document:
    """Compare stored outputs with the original's; what a failure was found on is kept in `bundle`."""
    from edgeopt.bench import parity as bench  # numpy is loaded only where arrays are compared

    work.context.progress.update(name, "comparing")
    model = prepared["model"]
    folder = work.folder / folder_named(name)
    outputs = tuple(TensorSpec.from_json(s) for s in model["outputs"])
    result = bench.compare(
        work.folder / "reference",
        folder,
        outputs,
        samples=prepared["data"]["verified"],
        labels=bench.read_labels(work.folder / "inputs"),
        task=model["task"],
        runtime=ran["runtime"],
        inputs=prepared["data"]["inputs"],
        threshold=bench.threshold_of(precision, what.min_snr_db, what.min_agreement),
        half=_computes_in_half(path, precision),
    )
    if not result.passed and bundle is not None:
        evidence = bundle / "evidence" / f"{path.name}.npz"
        bench.keep_evidence(work.folder, folder, [s["name"] for s in model["inputs"]], outputs, evidence)
    shutil.rmtree(folder)
    return result.to_json() | told_beside(ran, work.folder / "reference")


def _computes_in_half(path: Path, precision: str) -> bool:
    """Tell whether an artifact computes in float16: Core ML's do in every precision but fp32."""
    form = format_of_file(path)
    return precision == "fp16" or (
        form is not None and form.name == "coreml" and coreml_arithmetic(precision) != "fp32"
    )


def told_beside(ran: Document, reference: Path) -> Document:
    """Return what running an artifact told beside its outputs: notes, and metrics with those of the original's."""
    told = {name: ran[name] for name in ("notes", "metrics") if ran.get(name)}
    if "metrics" in told:
        told["reference_metrics"] = json.loads((reference / METRICS).read_bytes())
    return told


def predict(
    work: Workshop,
    artifacts: tuple[Path, ...],
    images: Path,
    folder: Path,
    card: Path | None,
    confidence: float | None,
    frames: int,
) -> Document:
    """Draw what artifacts find in images; returns it as data."""
    arguments = {
        "artifacts": [{"path": str(a), "runtime": artifact_format(a).runtime} for a in artifacts],
        "images": str(images),
        "card": str(card) if card else None,
        "confidence": confidence,
        "frames": frames,
        "folder": str(folder),
    }
    what = f"predicting on {images}"
    with work.worker(threads=work.context.jobs) as worker:
        document: Document = work.call(
            worker, "predict", "predict:predict", arguments, what=what, failure=ArtifactError
        )
    work.context.progress.finish("predict", f"{len(document['predictions'])} images", ok=True)
    return document


def compare_speed(
    work: Workshop,
    worker: Worker,
    name: str,
    form: Format,
    path: Path,
    against: Path,
    prepared: Document,
    outputs: list[Document] | None = None,
    against_form: Format | None = None,
) -> Document:
    """Time an artifact against another, of its own format where none is named, in turns in one process.

    `outputs` are those of both, where they are others than the original's.
    """
    arguments = {
        "runtime": form.runtime,
        "against_runtime": (against_form or form).runtime,
        "artifact": str(path),
        "against": str(against),
        "inputs": prepared["model"]["inputs"],
        "outputs": prepared["model"]["outputs"] if outputs is None else outputs,
        "inputs_folder": str(work.folder / "inputs"),
        "seconds": SPEED_SECONDS,
    }
    what = f"timing {path.name}"
    found: Document = work.call(worker, name, "speed:compare_speed", arguments, what=what, failure=ArtifactError)
    return found


def locate(
    work: Workshop,
    worker: Worker,
    path: Path,
    against: str,
    prepared: Document,
    precision: str,
    threshold_db: float,
) -> Document:
    """Name the first operator of a Core ML package whose result falls below a threshold.

    Raises:
        UsageError: the artifact is no Core ML package, or the original neither a PyTorch model nor a package.
    """
    if artifact_format(path).name != "coreml":
        raise UsageError(f"{path}: operators are compared one by one in Core ML packages only")
    arguments = {
        "artifact": str(path),
        "original": against if format_of_file(Path(against)) else str(work.folder / "program.pt2"),
        "inputs": prepared["model"]["inputs"],
        "outputs": prepared["model"]["outputs"],
        "inputs_folder": str(work.folder / "inputs"),
        "threshold_db": threshold_db,
        "precision": "fp32" if precision == "fp32" else "fp16",
    }
    what = f"locating where {path.name} diverges"
    found: Document = work.call(worker, "divergence", "locate:locate", arguments, what=what, failure=ArtifactError)
    return found


def inspect_artifact(work: Workshop, path: Path) -> Document:
    """Read an artifact's structure, without executing it."""
    form = artifact_format(path)
    arguments = {"artifact": str(path), "format_name": form.name}
    what = f"inspecting {path.name}"
    with work.worker() as worker:
        record: Document = work.call(
            worker, "inspect", "inspect:inspect_artifact", arguments, what=what, failure=ArtifactError
        )
    return record


def inspect_source(work: Workshop, source: Source) -> Document:
    """Load a model and read its structure."""
    what = f"inspecting {source.name}"
    with work.worker_for(source) as worker:
        record: Document = work.call(
            worker, "inspect", "inspect:inspect_source", _naming(source), what=what, failure=SourceError
        )
    return record


def tiny_source(folder: Path) -> Source:
    """Write a model of one convolution, by which a backend shows that it works."""
    code = folder / "tiny.py"
    code.write_text(
        "import torch\n\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten())\n"
    )
    return Source(f"{code}:build", shapes=((1, 3, 8, 8),))


def missing_packages(form: Format) -> list[str]:
    """Return the packages of a format that cannot be found."""
    return [name for name in form.packages if find_spec(name) is None]


def artifact_format(path: Path) -> Format:
    """Return the format of an artifact that exists.

    Raises:
        UsageError: there is no such file, or its name says no format.
    """
    form = format_of_file(path)
    if form is None:
        suffixes = ", ".join(f.suffix for f in FORMATS.values())
        raise UsageError(f"{path}: not an artifact that edgeopt can execute; known: {suffixes}")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.is_dir() != (form.name == "coreml"):
        raise UsageError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'is a file, not a package folder'}")
    return form


def _naming(source: Source) -> Document:
    return {
        "source": source.name,
        "arch": source.arch,
        "trust": source.trust,
        "shapes": [list(shape) for shape in source.shapes],
    }


def folder_named(name: str) -> str:
    """Return the folder of the workshop in which what is shown under a name stores its outputs."""
    return name.replace(" ", "-")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
