"""One conversion: the model is prepared once, and each format is made and run in every precision, side by side.

While the model loads, the first formats' workers already import their converters; while they convert, the original runs
on the same inputs. Futures hand on what each needs of the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeopt import steps, suppression
from edgeopt.cache import file_sha256, key_of
from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.errors import CancelledRunError, ConversionError, EdgeoptError
from edgeopt.core.formats import Format
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import scheme_of
from edgeopt.core.target import Target
from edgeopt.steps import Document, Plan, Source, Workshop
from edgeopt.suppression import Inside
from edgeopt.worker import Worker

# The slowest first, so that the last to end is a short one.
START_ORDER = ("litert", "executorch", "coreml", "onnx")


@dataclass(frozen=True)
class Quantization:
    """A model brought to integers once, for every format that wants it so.

    It is a folder: `conditioned.pt2` in float with its weights on the integer grid and, for static precisions,
    `quantized.pt2` and `ranges.json`.
    """

    precision: str
    reduce_range: bool

    @property
    def name(self) -> str:
        """What progress shows."""
        return f"{self.precision} graph" + (" (7-bit weights)" if self.reduce_range else "")

    @classmethod
    def wanted(cls, form: Format, precision: str, target: Target | None) -> Quantization | None:
        """Return what a format needs for a precision; None where it starts from the model as it came."""
        scheme = scheme_of(precision)
        if scheme.kind in ("float", "palettized"):
            return None
        sums_bytes = scheme.activation_bits == 8 or scheme.kind == "dynamic"
        saturates = form.name == "onnx" and sums_bytes and target is not None and target.kernels.reduce_range
        return cls(precision, saturates)


class Conversion:
    """Makes every artifact of a plan in `bundle`.

    Args:
        work: where it happens.
        source: the model.
        what: formats, precisions, data.
        bundle: the folder to write artifacts to.
    """

    def __init__(self, work: Workshop, source: Source, what: Plan, bundle: Path) -> None:
        self.work = work
        self.source = source
        self.what = what
        self.bundle = bundle
        self._prepared: Future[Document] = Future()
        self._reference: Future[None] = Future()
        wanted = [Quantization.wanted(f, p, what.target) for p in what.precisions for f in what.formats]
        self._quantized: dict[Quantization, Future[Document]] = {q: Future() for q in wanted if q is not None}

    def run(self) -> tuple[Document, list[Document], list[Document]]:
        """Return what `prepare` found, the artifacts' records, and those of the failures.

        Raises:
            EdgeoptError: the model or its data cannot be used; a format's own failure is only recorded.
        """
        for precision in self.what.precisions:
            for form in self.what.formats:
                self.work.context.progress.update(f"{form.name} {precision}", "waiting")
        order = sorted(self.what.formats, key=lambda f: START_ORDER.index(f.name) if f.name in START_ORDER else 0)
        with ThreadPoolExecutor(2) as aside, ThreadPoolExecutor(self.work.context.jobs) as pool:
            aside.submit(self._run_original)
            aside.submit(self._quantize)
            futures = [pool.submit(self._make_format, form) for form in order]
            try:
                prepared = self._prepared.result()
                records = [record for future in futures for record in future.result()]
                self._reference.result()
            except BaseException:
                self.work.context.cancel.set()  # both pools wait for their threads, so they must end now
                raise
        self._compare_speeds([r for r in records if "reason" not in r], prepared)
        names = [form.name for form in self.what.formats]
        records.sort(key=lambda r: (self.what.precisions.index(r["precision"]), names.index(r["format"])))
        return prepared, [r for r in records if "reason" not in r], [r for r in records if "reason" in r]

    def _run_original(self) -> None:
        with _passing_on_errors(self._prepared, self._reference), self.work.worker_for(self.source) as worker:
            self._prepared.set_result(steps.prepare(self.work, worker, self.source, self.what))
            prepared = self._prepared.result()
            steps.run_reference(self.work, worker, prepared)
            if self.what.nms:
                suppression.suppress_reference(self.work, worker, prepared, prepared["model"]["detection"])
            self._reference.set_result(None)

    def _quantize(self) -> None:
        """Bring the model to integers, once for all formats that take the same."""
        if not self._quantized:
            return
        with _passing_on_errors(*self._quantized.values()), self.work.worker() as worker:
            prepared = self._prepared.result()
            for wanted, future in self._quantized.items():
                try:
                    future.set_result(self._quantize_once(worker, wanted, prepared))
                except CancelledRunError:
                    raise
                except EdgeoptError as error:
                    self.work.context.progress.finish(wanted.name, str(error), ok=False)
                    future.set_exception(error)

    def _quantize_once(self, worker: Worker, wanted: Quantization, prepared: Document) -> Document:
        options = self.what.quantization.model_copy(
            update={"reduce_range": wanted.reduce_range or self.what.quantization.reduce_range}
        )
        out = self.work.folder / "quantized" / wanted.name.replace(" ", "-")
        tools = {p: _version(p) for p in ("torch", "torchao")}
        settled = {"precision": wanted.precision, "options": options.model_dump(mode="json")}
        key = key_of(_identity(prepared) | settled | {"stage": "quantize", "tools": tools})
        kept = self.work.context.cache
        record = kept.get(key, out) if kept is not None else None
        if record is None:
            calibrated = prepared["data"]["calibrated"]
            arguments = settled | {
                "program": str(self.work.folder / "program.pt2"),
                "inputs": prepared["model"]["inputs"],
                "task": prepared["model"]["task"],
                "calibration": str(self.work.folder / "calibration") if calibrated else None,
                "out": str(out),
                "threads": self.work.context.jobs,
            }
            what = f"{wanted.precision} of {prepared['model']['name']}"
            record = self.work.call(
                worker, wanted.name, "quantize:quantize", arguments, what=what, failure=ConversionError
            )
            if kept is not None:
                kept.put(key, out, record)
        told = f"calibrated on {prepared['data']['calibrated']} samples"
        if record["keep_float"]:
            told += f", {len(record['keep_float'])} layers kept in float"
        self.work.context.progress.finish(wanted.name, told, ok=True)
        return record | {"folder": str(out)}

    def _make_format(self, form: Format) -> list[Document]:
        """Make one format in every precision, all in one worker; a failure is a record with a `reason`."""
        records = []
        with self.work.worker(threads=1) as worker:
            self._warm(worker, form)
            prepared = self._prepared.result()
            for precision in self.what.precisions:
                name = f"{form.name} {precision}"
                try:
                    record = self._make(worker, name, form, precision, prepared)
                    parity = record["parity"]
                    self.work.context.progress.finish(name, parity["reason"] or "verified", ok=parity["passed"])
                except CancelledRunError:
                    raise
                except EdgeoptError as found:
                    error = steps.blame_full_disk(found, self.work.folder, self.bundle)
                    reason = str(error.args[0])
                    self.work.context.progress.finish(name, reason, ok=False)
                    record = {"format": form.name, "precision": precision, "reason": reason, "log": error.log}
                records.append(record)
            if any(scheme_of(r["precision"]).kind != "float" and "reason" not in r for r in records):
                self._make_twin(worker, form, prepared)
        return records

    def _warm(self, worker: Worker, form: Format) -> None:
        """Import the converter while the model is still being loaded; its errors are told by the export itself."""
        if self._prepared.done():
            return
        name = f"{form.name} {self.what.precisions[0]}"
        with steps.dispensable():
            what = f"importing the {form.name} converter"
            self.work.call(worker, name, "export:warm", {"format_name": form.name}, what=what, failure=ConversionError)

    def _make(self, worker: Worker, name: str, form: Format, precision: str, prepared: Document) -> Document:
        """Make one artifact and run it; returns its entry in the manifest.

        Raises:
            EdgeoptError: the converter or the runtime failed; what was written stands in `evidence` or is gone.
        """
        self.work.context.progress.update(name, "starting")
        path = self.bundle / f"{prepared['model']['name']}.{precision}{form.suffix}"
        request = self._request(form, precision, prepared, path)
        started = time.monotonic()
        try:
            export, from_cache = self._export(worker, name, form, request, prepared)
        except EdgeoptError:
            steps.remove(path)
            raise
        try:
            inside = Inside.of(export, request.suppression)
            outputs = inside.outputs if inside else None
            ran = steps.execute(self.work, worker, name, form, path, prepared, precision, outputs)
            seconds = time.monotonic() - started
            self._reference.result()
            if inside is None:
                parity = steps.compare(self.work, name, path, prepared, self.what, precision, ran, self.bundle)
            else:
                parity = suppression.compare(self.work, name, inside, prepared, self.what, precision, ran)
        except EdgeoptError:
            (self.bundle / "evidence").mkdir(exist_ok=True)
            path.rename(self.bundle / "evidence" / path.name)
            raise
        return {
            "format": form.name,
            "precision": precision,
            "path": path.name,
            "size_bytes": _size(path),
            "sha256": file_sha256(path),
            "inputs": [s.to_json() for s in export.inputs],
            "outputs": [s.to_json() for s in export.outputs],
            "nms": inside.options if inside else None,
            "parity": parity,
            "not_quantized": list(export.not_quantized),
            "integer_ops": export.integer_ops,
            "float_ops": export.float_ops,
            "quantization": self._quantization_record(form, precision),
            "speed": None,
            "notes": list(export.notes),
            "tools": export.tools,
            "cached": from_cache,
            "seconds": round(seconds, 2),
        }

    def _make_twin(self, worker: Worker, form: Format, prepared: Document) -> None:
        """Export the model in float where the plan has no such artifact, to time the others against it."""
        path = self._twin(form, prepared)
        if not self.what.compares_speed or path.parent == self.bundle or not form.runs_here:
            return
        path.parent.mkdir(exist_ok=True)
        name = f"{form.name} speed"
        with steps.dispensable():  # then the speed is not compared, which the record says
            self._export(worker, name, form, self._request(form, "fp32", prepared, path), prepared)

    def _twin(self, form: Format, prepared: Document) -> Path:
        folder = self.bundle if "fp32" in self.what.precisions else self.work.folder / "twins"
        return folder / f"{prepared['model']['name']}.fp32{form.suffix}"

    def _compare_speeds(self, records: list[Document], prepared: Document) -> None:
        """Time each integer artifact against the float one of its format, when nothing else runs."""
        if not self.what.compares_speed:
            return
        with self.work.worker(threads=1) as worker:
            for record in records:
                form = next(f for f in self.what.formats if f.name == record["format"])
                twin = self._twin(form, prepared)
                if scheme_of(record["precision"]).kind == "float" or not form.runs_here or not twin.exists():
                    continue
                name = f"{form.name} speed"
                path = self.bundle / record["path"]
                with steps.dispensable():
                    outputs = record["outputs"] if record["nms"] else None
                    record["speed"] = steps.compare_speed(self.work, worker, name, form, path, twin, prepared, outputs)
                    self.work.context.progress.finish(name, f"{record['speed']['ratio']:.2f} of float", ok=True)

    def _request(self, form: Format, precision: str, prepared: Document, path: Path) -> ExportRequest:
        program, ranges, options = self.work.folder / "program.pt2", None, self.what.quantization
        scheme = scheme_of(precision)
        wanted = Quantization.wanted(form, precision, self.what.target)
        if wanted is not None:
            record = self._quantized[wanted].result()
            folder = Path(record["folder"])
            lowers = scheme.kind == "static" and form.lowers_quantized_graph
            program = folder / ("quantized.pt2" if lowers else "conditioned.pt2")
            ranges = str(folder / "ranges.json") if scheme.kind == "static" else None
            options = options.model_copy(
                update={
                    "keep_float": tuple(record["keep_float"]),
                    "reduce_range": wanted.reduce_range or options.reduce_range,
                }
            )
        target = self.what.target
        calibrated = scheme.kind in ("static", "dynamic") and prepared["data"]["calibrated"]
        return ExportRequest(
            name=prepared["model"]["name"],
            program=str(program),
            inputs=tuple(TensorSpec.from_json(s) for s in prepared["model"]["inputs"]),
            outputs=tuple(TensorSpec.from_json(s) for s in prepared["model"]["outputs"]),
            precision="static_wi8_ai8" if precision == "auto" else precision,
            out=str(path),
            calibration=str(self.work.folder / "calibration") if calibrated else None,
            ranges=ranges,
            quantization=options,
            layout=target.layout if target else "NCHW",
            coreml_deployment_target=target.coreml_deployment_target if target else "iOS17",
            int8_activations=target.kernels.int8_activations if target else "uint8",
            suppression=DetectionOptions(**prepared["model"]["detection"])
            if self.what.nms and form.suppresses
            else None,
        )

    def _quantization_record(self, form: Format, precision: str) -> Document | None:
        wanted = Quantization.wanted(form, precision, self.what.target)
        if wanted is None:
            return None
        return {name: value for name, value in self._quantized[wanted].result().items() if name != "folder"}

    def _export(
        self, worker: Worker, name: str, form: Format, request: ExportRequest, prepared: Document
    ) -> tuple[Export, bool]:
        """Export, or take the same export from the cache; returns its record and whether it was there."""
        out = Path(request.out)
        kept = self.work.context.cache
        calibrated = scheme_of(request.precision).kind != "float"
        key = key_of(
            _identity(prepared)
            | {
                "request": request.model_dump(mode="json", exclude={"program", "out", "calibration", "ranges"}),
                "lowered": file_sha256(Path(request.program)) if request.ranges else None,
                "format": form.name,
                "calibration": prepared["data"]["calibration_sha256"] if calibrated else None,
                "tools": {p: _version(p) for p in ("torch", *form.packages)},
            }
        )
        if kept is not None and (record := kept.get(key, out)) is not None:
            return Export.from_json(record), True
        arguments = {"format_name": form.name, "request": request.model_dump(mode="json")}
        what = f"{form.name} export of {request.name}"
        record = self.work.call(worker, name, "export:export", arguments, what=what, failure=ConversionError)
        if kept is not None:
            kept.put(key, out, record)
        return Export.from_json(record), False


@contextlib.contextmanager
def _passing_on_errors(*futures: Future[Any]) -> Iterator[None]:
    """Give an error to whoever waits for the futures that have no result yet."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - a thread's error must reach those who wait, whatever it is
        for future in futures:
            if not future.done():
                future.set_exception(error)


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
        for file in sorted(Path(__file__).with_name(folder).glob("*.py")):
            digest.update(file_sha256(file).encode())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
