"""One evaluation: labelled inputs are stored once, and every artifact answers them in its own runtime."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import steps
from edgeopt.bench import accuracy
from edgeopt.bench.parity import CLASSIFICATION, read_labels
from edgeopt.bundle.reading import Bundle, artifact_name, open_bundle, recorded, write_whole
from edgeopt.cache import file_sha256
from edgeopt.context import Context
from edgeopt.core.arrays import array_file
from edgeopt.core.card import read_card
from edgeopt.core.detection import METRICS, TASKS
from edgeopt.core.errors import ArtifactError, CancelledRunError, EdgeoptError, UsageError
from edgeopt.core.formats import Format, format_named, format_of_file
from edgeopt.core.model import TensorSpec
from edgeopt.data import is_builtin
from edgeopt.steps import Document, Plan, Source, Workshop, workshop

EVAL_FILE = "eval.json"
EMBEDDING = "sentence-embedding"
PICTURES = 24
TEXT_LENGTH = 300


@dataclass(frozen=True)
class Subject:
    """What is evaluated: one artifact, or all of a bundle."""

    artifacts: tuple[tuple[Format, str, Path], ...]
    bundle: Bundle | None

    @classmethod
    def of(cls, path: Path, only: tuple[str, ...] = ()) -> Subject:
        """Return what `path` names; an artifact inside a bundle brings the bundle's description.

        Raises:
            UsageError: neither a bundle nor an artifact, or none that `only` names.
        """
        form = format_of_file(path)
        if form is not None:
            steps.artifact_format(path)
            bundle = open_bundle(path.parent) if (path.parent / "manifest.json").is_file() else None
            entry = next((a for a in bundle.artifacts if a["path"] == path.name), None) if bundle else None
            return cls(((form, str(entry["precision"]) if entry else "fp32", path),), bundle if entry else None)
        bundle = open_bundle(path)
        chosen = [a for a in bundle.artifacts if not only or a["format"] in only or a["precision"] in only]
        if not chosen:
            names = ", ".join(artifact_name(a) for a in bundle.artifacts) or "none"
            raise UsageError(f"{path}: no artifact to evaluate; it holds {names}")
        for artifact in chosen:
            steps.artifact_format(bundle.path(artifact))
        found = ((format_named(str(a["format"])), str(a["precision"]), bundle.path(a)) for a in chosen)
        return cls(tuple(found), bundle)

    @property
    def float_reference(self) -> tuple[Format, str, Path] | None:
        """The bundle's artifact in fp32, of the format that runs most like the original; None where it has none."""
        if self.bundle is None:
            return None
        for name in ("onnx", "executorch", "litert", "coreml"):
            entry = self.bundle.find(f"{name}/fp32")
            if entry is not None and self.bundle.path(entry).exists():
                return format_named(name), "fp32", self.bundle.path(entry)
        return None


def evaluate(
    subject: Subject,
    context: Context,
    *,
    data: str | None = None,
    against: Source | None = None,
    samples: int = 500,
    card: Path | None = None,
) -> Document:
    """Execute every artifact on labelled inputs and return its metrics, per class and per group.

    Args:
        subject: the artifacts.
        context: how work is done.
        data: a data source; the card's or the bundle's own where None.
        against: the original, a model or an artifact; the bundle's fp32 artifact where None.
        samples: inputs at most.
        card: preprocessing, labels and task, where neither bundle nor model tell them.

    Raises:
        UsageError: nothing tells how to feed the artifact, or no data.
        ArtifactError: the only artifact cannot be executed; one of several is listed under `failures`.
    """
    with workshop(context) as work:
        prepared, reference = _prepare(work, subject, data, against, samples, card)
        judge = _Judge(work, prepared, reference)
        results: list[Document] = []
        failures: list[Document] = []

        def run(item: tuple[Format, str, Path]) -> Document:
            return _run(work, item, prepared, judge)

        with ThreadPoolExecutor(context.jobs) as pool:
            futures = [pool.submit(run, item) for item in subject.artifacts]
            for (form, precision, path), future in zip(subject.artifacts, futures, strict=True):
                try:
                    results.append(future.result())
                except CancelledRunError:
                    context.cancel.set()
                    raise
                except EdgeoptError as error:
                    if len(subject.artifacts) == 1:
                        raise
                    name = {"format": form.name, "precision": precision, "path": path.name}
                    failures.append(name | {"reason": str(error), "log": error.log})
        document = judge.document(results) | {"failures": failures}
        document["thumbnails"] = _pictures(work, prepared, document)
    return document


def keep_evaluation(bundle: Bundle, document: Document) -> Path:
    """Write `eval.json` into the bundle, where gate and report find it."""
    path = bundle.folder / EVAL_FILE
    write_whole(path, json.dumps(document, indent=1) + "\n")
    return path


def _prepare(
    work: Workshop, subject: Subject, data: str | None, against: Source | None, samples: int, card: Path | None
) -> tuple[Document, Document | None]:
    """Store inputs, and the original's outputs on them; returns the model with its data, and what the original is."""
    other = format_of_file(Path(against.name)) if against is not None else None
    if against is not None and other is None:
        what = Plan((), ("fp32",), data=data, samples=samples, calibration_samples=0)
        with work.worker_for(against) as worker:
            prepared = steps.prepare(work, worker, against, what)
            if prepared["data"]["inputs"] != "data":
                raise UsageError(f"{against.name}: its card names no data to evaluate on: give --data FILE")
            steps.run_reference(work, worker, prepared)
        return prepared, {"name": against.name, "kind": "model"}
    prepared = _described(work, subject, data, samples, card)
    if against is not None and other is not None:
        chosen: tuple[Format, str, Path] | None = (other, "fp32", Path(against.name))
        steps.artifact_format(Path(against.name))
    else:
        chosen = subject.float_reference
    if chosen is None:
        return prepared, None
    form, precision, path = chosen
    with work.worker(threads=1) as worker:
        steps.execute(work, worker, "reference", form, path, prepared, precision, _own_outputs(path))
    work.context.progress.finish("reference", path.name, ok=True)
    return prepared, {"name": path.name, "kind": "artifact", "format": form.name, "precision": precision}


def _described(work: Workshop, subject: Subject, data: str | None, samples: int, card: Path | None) -> Document:
    """Store inputs by a bundle's description, or a card's."""
    known = subject.bundle.manifest if subject.bundle else {}
    model: Document = dict(known.get("model") or {})
    base = subject.bundle.folder if subject.bundle else Path.cwd()
    if card is not None:
        told = read_card(card)
        base = card.parent
        model |= {"task": told.task, "preprocess": told.preprocess.model_dump(mode="json")}
        model["labels"] = _card_labels(told.labels, base)
        data = data or _beside(told.data.eval, base)
    if "preprocess" not in model:
        raise UsageError(
            f"{subject.artifacts[0][2]}: nothing tells how its inputs are made: give --card CARD.yaml, or --against a "
            "model with a card"
        )
    record: Document = known.get("data") or {}
    calibrated = int(record.get("calibrated") or 0)
    if record.get("calibration_source", record.get("source")) != record.get("source"):
        calibrated = 0  # on other data than it was verified on
    own = data is None
    data = data or _beside(record.get("source"), Path(str(model.get("source"))).parent)
    if data is None:
        raise UsageError("no data to evaluate on: give --data FILE")
    form, _, path = subject.artifacts[0]
    if "inputs" not in model:
        with work.worker() as worker:
            asked = {"runtime": form.runtime, "artifact": str(path)}
            told_by_file: Document = work.call(
                worker, "artifact", "execute:describe", asked, what=f"reading {path.name}", failure=ArtifactError
            )
        specs = {side: [_fed(s) for s in told_by_file[side]] for side in ("inputs", "outputs")}
        model = {"name": path.stem, "source": str(path)} | model | specs
    arguments: Document = {
        "name": model["name"],
        "task": model["task"],
        "inputs": model["inputs"],
        "preprocess": model["preprocess"],
        "labels": model.get("labels"),
        "data": data,
        "base": str(base.resolve()),
        "samples": samples,
        "skip_fingerprint": None if own else record.get("fingerprint"),
        "skip": calibrated,
        "folder": str(work.folder),
    }
    with work.worker() as worker:
        told_of_data: Document = work.call(
            worker, "data", "evaluate:collect", arguments, what=f"reading {data}", failure=ArtifactError
        )
    work.context.progress.finish("data", f"{told_of_data['verified']} samples", ok=True)
    return {"model": model, "data": told_of_data}


def _beside(name: str | None, folder: Path) -> str | None:
    """Return the data that a card names, whose path starts at the card's folder."""
    return name if name is None or is_builtin(name) else str(folder / name)


def _fed(record: Document) -> Document:
    """Return a specification as values are fed and read: real numbers, one sample where the batch is open."""
    spec = TensorSpec.from_json(record)
    shape = (1 if spec.shape[:1] == (-1,) else spec.shape[0], *spec.shape[1:]) if spec.shape else ()
    dtype = "float32" if spec.scale is not None or spec.dtype == "float16" else spec.dtype
    return replace(spec, shape=shape, dtype=dtype, scale=None, zero_point=None).to_json()


def _card_labels(labels: Any, base: Path) -> list[str] | None:
    if not isinstance(labels, str):
        return None if labels is None else list(labels)
    try:
        return (base / labels).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{base / labels}: the card's labels cannot be read: {error}") from error


def _own_outputs(artifact: Path) -> list[Document] | None:
    """Return an artifact's outputs where its manifest says that suppression made others of the original's."""
    entry = recorded(artifact) or {}
    return entry["outputs"] if entry.get("nms") else None


def _run(work: Workshop, item: tuple[Format, str, Path], prepared: Document, judge: _Judge) -> Document:
    form, precision, path = item
    name = f"{form.name} {precision}"
    try:
        with work.worker(threads=1) as worker:
            ran = steps.execute(work, worker, name, form, path, prepared, precision, _own_outputs(path))
    except EdgeoptError as error:
        work.context.progress.finish(name, str(error), ok=False)
        raise
    folder = work.folder / name.replace(" ", "-")
    result = {
        "format": form.name,
        "precision": precision,
        "path": path.name,
        "sha256": file_sha256(path),
        "runtime": ran["runtime"],
    } | (judge.detections(ran["metrics"]) if judge.detects else judge(folder))
    shutil.rmtree(folder)
    work.context.progress.finish(name, judge.told(result), ok=True)
    return result


class _Judge:
    """Turns stored outputs into metrics."""

    def __init__(self, work: Workshop, prepared: Document, reference: Document | None) -> None:
        model = prepared["model"]
        self.prepared, self.reference = prepared, reference
        self.count: int = prepared["data"]["verified"]
        self.output = TensorSpec.from_json(model["outputs"][0])
        self.task: str = model["task"]
        self.names: list[str] = [str(n) for n in model.get("labels") or []]
        labels = np.array(read_labels(work.folder / "inputs"), np.int64)[: self.count]
        self.labels = labels if len(labels) and (labels >= 0).all() else None
        self.samples: list[Document] = json.loads((work.folder / "inputs" / "samples.json").read_bytes())
        self.groups = [s["slices"] for s in self.samples]
        shape = self.output.shape
        generic = self.task == "generic" and len(shape) == 2 and shape[-1] > 1
        self.classifies = (self.task in CLASSIFICATION and len(shape) == 2 and shape[-1] > 1) or generic
        self.detects = self.task in TASKS
        self.original = None
        self.original_metrics: Document = {}
        if reference is not None and self.detects:
            self.original_metrics = json.loads((work.folder / "reference" / METRICS).read_bytes())
        elif reference is not None:
            self.original = self._outputs(work.folder / "reference")

    def __call__(self, folder: Path) -> Document:
        """Return the metrics of the outputs in `folder`, and how they differ from the original's."""
        outputs = self._outputs(folder)
        found: Document = {"metrics": self._metrics(outputs), "against": None, "slices": [], "answers": None}
        if self.classifies:
            told = accuracy.answers(outputs)
            before = accuracy.answers(self.original) if self.original is not None else None
            found["answers"] = told.tolist()
            if self.labels is not None:
                if before is not None:
                    found["against"] = accuracy.damage(told, before, self.labels, self.names)
                found["slices"] = accuracy.by_group(told, before, self.labels, self.groups)
            elif before is not None:
                found["against"] = {"samples": self.count, "agreement": float((told == before).mean())}
            if before is not None:
                found["changed"] = [int(i) for i in np.flatnonzero(told != before)]
        return found

    def detections(self, metrics: Document) -> Document:
        """Return a detector's mean average precision, where the data tells the objects, and what is lost of it."""
        found: Document = {"metrics": self._precision(metrics), "against": None, "slices": [], "answers": None}
        if metrics and self.original_metrics:
            found["against"] = {f"{name}_drop": self.original_metrics[name] - value for name, value in metrics.items()}
        return found

    def _precision(self, metrics: Document) -> Document:
        return {"kind": "detection" if metrics else "none", "samples": self.count} | metrics

    def _metrics(self, outputs: accuracy.Array) -> Document:
        if self.classifies and self.labels is not None:
            return {"kind": "classification"} | accuracy.classification(outputs, self.labels, self.names)
        if self.task == EMBEDDING and self.original is not None:
            flat = outputs.reshape(len(outputs), -1), self.original.reshape(len(self.original), -1)
            return {"kind": "embedding"} | accuracy.embedding(*flat)
        return {"kind": "none", "samples": self.count}

    def document(self, results: list[Document]) -> Document:
        """Return what `eval.json` holds."""
        model, data = self.prepared["model"], self.prepared["data"]
        reference: Document | None = None
        if self.reference is not None and self.detects:
            reference = self.reference | {"metrics": self._precision(self.original_metrics), "answers": None}
        elif self.reference is not None and self.original is not None:
            reference = self.reference | {"metrics": self._metrics(self.original), "answers": None}
            if self.classifies:
                reference["answers"] = accuracy.answers(self.original).tolist()
        return {
            "edgeopt": version("edgeopt"),
            "model": {k: model.get(k) for k in ("name", "source", "task", "labels")},
            "data": {k: data.get(k) for k in ("source", "fingerprint", "verified", "labelled", "note")},
            "reference": reference,
            "artifacts": results,
            "samples": [self._sample(i) for i in range(self.count)],
        }

    def _sample(self, index: int) -> Document:
        told = self.samples[index]
        found: Document = {"id": told["id"], "label": None if self.labels is None else int(self.labels[index])}
        if told["slices"]:
            found["slices"] = told["slices"]
        if told["text"] is not None:
            found["text"] = told["text"][:TEXT_LENGTH]
        return found

    def told(self, result: Document) -> str:
        """Return the result in a few words."""
        metrics = result["metrics"]
        if "top1" in metrics:
            return f"top-1 {100 * metrics['top1']:.2f} %"
        if "map50" in metrics:
            return f"mAP50 {100 * metrics['map50']:.2f} %"
        return f"cosine {metrics['cosine']:.5f}" if "cosine" in metrics else f"{self.count} samples"

    def _outputs(self, folder: Path) -> accuracy.Array:
        stored = np.load(array_file(folder, self.output.name))
        flat = stored.reshape(-1, *stored.shape[2:]) if stored.ndim > 2 else stored.reshape(len(stored), -1)
        return np.asarray(flat[: self.count], np.float64)


def _pictures(work: Workshop, prepared: Document, document: Document) -> Document:
    """Return small pictures of the changed examples that a report shows first."""
    changed: dict[int, int] = {}
    for artifact in document["artifacts"]:
        for index in artifact.get("changed") or []:
            changed[index] = changed.get(index, 0) + 1
    first = sorted(changed, key=lambda i: (-changed[i], i))[:PICTURES]
    model = prepared["model"]
    if not first or any("text" in document["samples"][i] for i in first):
        return {}
    arguments = {
        "inputs": model["inputs"],
        "preprocess": model["preprocess"],
        "indices": first,
        "folder": str(work.folder / "inputs"),
    }
    with work.worker() as worker:
        drawn: Document = work.call(
            worker, "pictures", "evaluate:thumbnails", arguments, what="drawing examples", failure=ArtifactError
        )
    return drawn
