"""The steps of the pipeline: each runs one task in a worker and hands on files in a temporary folder."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeopt.cache import file_sha256, key_of
from edgeopt.context import Context
from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import (
    ArtifactError,
    CancelledRunError,
    ConversionError,
    EdgeoptError,
    OutputError,
    SourceError,
    UsageError,
)
from edgeopt.core.formats import FORMATS, Format, format_of_file
from edgeopt.core.model import TensorSpec
from edgeopt.core.target import Target
from edgeopt.worker import Worker

Document = dict[str, Any]
# The slowest first, so that the last to end is a short one; LiteRT before those that wait for the int8 graph.
START_ORDER = ("litert", "executorch", "coreml", "onnx")
MIN_FREE_BYTES = 1 << 20


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
    samples: int = 64
    calibration_samples: int = 100
    min_snr_db: float | None = None
    min_agreement: float | None = None

    @property
    def calibrates(self) -> bool:
        """Whether any precision needs calibration inputs."""
        return any(p.startswith("static") for p in self.precisions)


@dataclass(frozen=True)
class Workshop:
    """Where one command works: its context and a folder of temporary files."""

    context: Context
    folder: Path

    def worker(self, threads: int | None = None, environment: dict[str, str] | None = None) -> Worker:
        """Return a new worker under the command's limits."""
        return Worker(threads=threads, environment=environment, limits=self.context.limits, cancel=self.context.cancel)

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
def workshop(context: Context, *places: Path) -> Iterator[Workshop]:
    """Yield a workshop; an error of a converter that a full disk caused is told as that."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-", ignore_cleanup_errors=True) as folder:
        try:
            yield Workshop(context, Path(folder))
        except EdgeoptError as error:
            raise blame_full_disk(error, Path(folder), *places) from error


def blame_full_disk(error: EdgeoptError, *places: Path) -> EdgeoptError:
    """Return the error, or what it really was: converters fail in ways of their own when the disk is full."""
    for place in places:
        if shutil.disk_usage(place).free < MIN_FREE_BYTES and not isinstance(error, OutputError):
            return OutputError(f"{place.parent}: no space left on the disk", log=error.log)
    return error


def prepare(work: Workshop, source: Source, what: Plan) -> Document:
    """Load the model, export it once, store inputs and the original's outputs."""
    arguments = _naming(source) | {
        "data": what.data,
        "samples": what.samples,
        "calibration_samples": what.calibration_samples if what.calibrates else 0,
        "folder": str(work.folder),
        "threads": work.context.jobs,
    }
    with work.worker(environment=_safety(source)) as worker:
        result: Document = work.call(
            worker, "model", "prepare:prepare", arguments, what=f"loading {source.name}", failure=SourceError
        )
    work.context.progress.finish("model", f"{result['model']['parameters']:,} parameters", ok=True)
    return result


def prepare_artifact(
    work: Workshop, path: Path, form: Format, what: Plan, shapes: tuple[tuple[int, ...], ...]
) -> Document:
    """Take an artifact as the original: store inputs and its outputs."""
    artifact_format(path)
    arguments = {
        "artifact": str(path),
        "runtime": form.runtime,
        "data": what.data,
        "samples": what.samples,
        "shapes": [list(s) for s in shapes],
        "folder": str(work.folder),
    }
    with work.worker(threads=work.context.jobs) as worker:
        result: Document = work.call(
            worker, "reference", "reference:reference", arguments, what=f"running {path.name}", failure=ArtifactError
        )
    work.context.progress.finish("reference", f"{result['data']['verified']} samples", ok=True)
    return result


def export_and_verify_all(
    work: Workshop, prepared: Document, what: Plan, bundle: Path
) -> tuple[list[Document], list[Document]]:
    """Export and verify every format in every precision; formats side by side. Returns artifacts and failures."""
    for precision in what.precisions:
        for form in what.formats:
            work.context.progress.update(f"{form.name} {precision}", "waiting")
    started = sorted(what.formats, key=lambda f: START_ORDER.index(f.name) if f.name in START_ORDER else 0)
    with ThreadPoolExecutor(max_workers=work.context.jobs) as pool:
        quantized: Future[Path] | None = None
        if what.calibrates and any(form.lowers_quantized_graph for form in what.formats):
            quantized = pool.submit(quantize, work, prepared)
        futures = [pool.submit(_one_format, work, form, prepared, what, bundle, quantized) for form in started]
        try:
            records = [record for future in futures for record in future.result()]
        except BaseException:
            work.context.cancel.set()  # the pool waits for its threads, so they must end now
            raise
    names = [form.name for form in what.formats]
    records.sort(key=lambda r: (what.precisions.index(r["precision"]), names.index(r["format"])))
    return [r for r in records if "reason" not in r], [r for r in records if "reason" in r]


def _one_format(
    work: Workshop, form: Format, prepared: Document, what: Plan, bundle: Path, quantized: Future[Path] | None
) -> list[Document]:
    """Make one format in every precision, all in one worker; a failure is a record with a `reason`."""
    progress = work.context.progress
    records = []
    with work.worker(threads=1) as worker:
        for precision in what.precisions:
            name = f"{form.name} {precision}"
            progress.update(name, "starting")
            try:
                record = export_and_verify(work, worker, name, form, precision, prepared, what, bundle, quantized)
                parity = record["parity"]
                progress.finish(name, parity["reason"] or "verified", ok=parity["passed"])
            except CancelledRunError:
                raise
            except EdgeoptError as found:
                error = blame_full_disk(found, work.folder, bundle)
                reason = str(error.args[0])
                progress.finish(name, reason, ok=False)
                record = {"format": form.name, "precision": precision, "reason": reason, "log": error.log}
            records.append(record)
    return records


def export_and_verify(
    work: Workshop,
    worker: Worker,
    name: str,
    form: Format,
    precision: str,
    prepared: Document,
    what: Plan,
    bundle: Path,
    quantized: Future[Path] | None,
) -> Document:
    """Make one artifact and run it; returns its entry in the manifest.

    Raises:
        EdgeoptError: the converter or the runtime failed; what was written stands in `evidence` or is gone.
    """
    started = time.monotonic()
    model = prepared["model"]
    path = bundle / f"{model['name']}.{precision}{form.suffix}"
    request = _request(work, form, precision, prepared, what, path, quantized)
    try:
        export, from_cache = _export(work, worker, name, form, request, prepared)
    except EdgeoptError:
        _remove(path)
        raise
    try:
        parity = run_and_compare(work, worker, name, form, path, prepared, what, precision, bundle)
    except EdgeoptError:
        (bundle / "evidence").mkdir(exist_ok=True)
        path.rename(bundle / "evidence" / path.name)
        raise
    return {
        "format": form.name,
        "precision": precision,
        "path": path.name,
        "size_bytes": _size(path),
        "sha256": file_sha256(path),
        "inputs": [s.to_json() for s in export.inputs],
        "outputs": [s.to_json() for s in export.outputs],
        "parity": parity,
        "not_quantized": list(export.not_quantized),
        "notes": list(export.notes),
        "tools": export.tools,
        "cached": from_cache,
        "seconds": round(time.monotonic() - started, 2),
    }


def quantize(work: Workshop, prepared: Document) -> Path:
    """Calibrate the one int8 graph that several formats lower; returns its file."""
    out = work.folder / "quantized" / "program.pt2"
    name = "int8 graph"
    arguments = {
        "program": str(work.folder / "program.pt2"),
        "inputs": prepared["model"]["inputs"],
        "calibration": str(work.folder / "calibration"),
        "out": str(out),
    }
    key = key_of(_identity(prepared) | {"stage": "quantize", "tools": {p: _version(p) for p in ("torch", "torchao")}})
    kept = work.context.cache.get(key, out) if work.context.cache else None
    if kept is None:
        what = f"static int8 of {prepared['model']['name']}"
        try:
            with work.worker(threads=1) as worker:
                work.call(worker, name, "quantize:quantize", arguments, what=what, failure=ConversionError)
        except EdgeoptError as error:
            work.context.progress.finish(name, str(error), ok=False)
            raise
        if work.context.cache:
            work.context.cache.put(key, out, {})
    work.context.progress.finish(name, f"calibrated on {prepared['data']['calibrated']} samples", ok=True)
    return out


def run_and_compare(
    work: Workshop,
    worker: Worker,
    name: str,
    form: Format,
    path: Path,
    prepared: Document,
    what: Plan,
    precision: str,
    bundle: Path | None = None,
) -> Document:
    """Execute an artifact on the stored inputs and compare; what a failure was found on is kept in the bundle."""
    from edgeopt.bench import parity as bench  # numpy is loaded only where arrays are compared

    folder = work.folder / name.replace(" ", "-")
    model = prepared["model"]
    arguments = {
        "runtime": form.runtime,
        "artifact": str(path),
        "inputs": model["inputs"],
        "outputs": model["outputs"],
        "inputs_folder": str(work.folder / "inputs"),
        "folder": str(folder),
        "options": {"precision": "fp32" if precision == "fp32" else "fp16"} if form.name == "coreml" else {},
    }
    running = f"running {path.name}"
    ran = work.call(worker, name, "execute:execute", arguments, what=running, failure=ArtifactError)
    work.context.progress.update(name, "comparing")
    outputs = tuple(TensorSpec.from_json(s) for s in model["outputs"])
    threshold = bench.THRESHOLDS[precision]
    result = bench.compare(
        work.folder / "reference",
        folder,
        outputs,
        samples=prepared["data"]["verified"],
        labels=bench.read_labels(work.folder / "inputs"),
        task=model["task"],
        runtime=ran["runtime"],
        inputs=prepared["data"]["inputs"],
        threshold=bench.Threshold(
            threshold.snr_db if what.min_snr_db is None else what.min_snr_db,
            threshold.agreement if what.min_agreement is None else what.min_agreement,
        ),
    )
    if not result.passed and bundle is not None:
        evidence = bundle / "evidence" / f"{path.name}.npz"
        bench.keep_evidence(work.folder, folder, [s["name"] for s in model["inputs"]], outputs, evidence)
    shutil.rmtree(folder)
    return result.to_json() | ({"notes": ran["notes"]} if ran["notes"] else {})


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
    with work.worker(environment=_safety(source)) as worker:
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


def _request(
    work: Workshop,
    form: Format,
    precision: str,
    prepared: Document,
    what: Plan,
    path: Path,
    quantized: Future[Path] | None,
) -> ExportRequest:
    static = precision.startswith("static")
    lowers = static and form.lowers_quantized_graph
    target = what.target
    model = prepared["model"]
    return ExportRequest(
        name=model["name"],
        program=str(quantized.result() if lowers and quantized else work.folder / "program.pt2"),
        inputs=tuple(TensorSpec.from_json(s) for s in model["inputs"]),
        outputs=tuple(TensorSpec.from_json(s) for s in model["outputs"]),
        precision=precision,
        out=str(path),
        calibration=str(work.folder / "calibration") if static else None,
        layout=target.layout if target else "NCHW",
        coreml_deployment_target=target.coreml_deployment_target if target else "iOS17",
        int8_activations=target.kernels.int8_activations if target else "uint8",
    )


def _export(
    work: Workshop, worker: Worker, name: str, form: Format, request: ExportRequest, prepared: Document
) -> tuple[Export, bool]:
    out = Path(request.out)
    kept = work.context.cache
    key = key_of(
        _identity(prepared)
        | {
            "request": request.model_dump(mode="json", exclude={"program", "out", "calibration"}),
            "format": form.name,
            "calibration": prepared["data"]["calibration_sha256"] if request.calibration else None,
            "tools": {p: _version(p) for p in ("torch", *form.packages)},
        }
    )
    if kept is not None and (record := kept.get(key, out)) is not None:
        return Export.from_json(record), True
    arguments = {"format_name": form.name, "request": request.model_dump(mode="json")}
    exporting = f"{form.name} export of {request.name}"
    record = work.call(worker, name, "export:export", arguments, what=exporting, failure=ConversionError)
    if kept is not None:
        kept.put(key, out, record)
    return Export.from_json(record), False


def _identity(prepared: Document) -> Document:
    """Return what every stage's result depends on: the program, its calibration inputs, and edgeopt's own code."""
    return {
        "edgeopt": _own_sha256(),
        "program": prepared["program_sha256"],
        "calibration": prepared["data"]["calibration_sha256"],
    }


@cache
def _own_sha256() -> str:
    digest = hashlib.sha256()
    for folder in ("exporters", "stages", "tasks"):
        digest.update(file_sha256(Path(__file__).with_name(folder)).encode())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _naming(source: Source) -> Document:
    return {
        "source": source.name,
        "arch": source.arch,
        "trust": source.trust,
        "shapes": [list(shape) for shape in source.shapes],
    }


def _safety(source: Source) -> dict[str, str]:
    """Forbid pickled code in the worker that opens what the user named."""
    return {} if source.trust else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
