"""A recipe's stages, one after the other; each is taken from the cache where the same was done before.

A stage's key holds its options, the key of the stage before, the data's fingerprints and the versions of what computes
it. A stage that trains keeps its checkpoints in the cache's folder under the same key, so a run that was killed goes on
from the last checkpoint of the stage it was in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from edgeopt.cache import CHECKPOINTS, file_sha256, key_of
from edgeopt.core.errors import ConversionError, SourceError, UsageError
from edgeopt.core.recipe import TRAINING, Recipe, Stage
from edgeopt.core.training import DistillOptions, Nodes, TrainingSettings
from edgeopt.steps import Document, Source, Workshop
from edgeopt.worker import Worker

TOOLS = ("torch", "lightning", "torch-pruning", "torchmetrics", "numpy")


@dataclass(frozen=True)
class RecipeRun:
    """A recipe with all that a run of it depends on.

    Attributes:
        recipe: what to do.
        folder: that its paths are relative to.
        trust: may run code that comes with a model's file.
        device: that trains.
        force: do every stage anew.
        devices: how many of each machine train together.
        nodes: machines that do.
    """

    recipe: Recipe
    folder: Path
    trust: bool = False
    device: str = "cpu"
    force: bool = False
    devices: int = 1
    nodes: Nodes = field(default_factory=Nodes)

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.nodes.count

    @property
    def model(self) -> Source:
        """The model that the recipe names."""
        return Source(_here(self.recipe.model, self.folder), _arch(self.recipe.arch, self.folder), self.trust)

    def data(self, kind: str) -> str | None:
        """Return the data source of a kind, as an absolute path where it is one."""
        name: str | None = getattr(self.recipe.data, kind)
        return None if name is None else _here(name, self.folder)


@dataclass(frozen=True)
class Compressed:
    """What the stages made.

    Attributes:
        program: the last stage's exported program.
        card: model card that names it, with the original's task, preprocessing, labels and data.
        opened: what the model and its data are.
        records: one per stage, the model as it came first.
        dense: folder of the model as it came, with its answers.
    """

    program: Path
    card: Path
    opened: Document
    records: list[Document]
    dense: Path


def compress(work: Workshop, run: RecipeRun) -> Compressed:
    """Perform the stages of a recipe that come before the export.

    Raises:
        EdgeoptError: the model or the data cannot be used, or a stage failed.
    """
    return _Compression(work, run).perform()


class _Compression:
    def __init__(self, work: Workshop, run: RecipeRun) -> None:
        self.work, self.run = work, run
        self.folder = work.folder / "compressed"
        self.folder.mkdir()
        self.data = self.folder / "data"
        self.data.mkdir()

    def perform(self) -> Compressed:
        for number, stage in enumerate(self.run.recipe.stages):
            _require_shares(f"stage {number} ({stage.kind})", stage.options, self.run.processes)
        naming = _naming(self.run.model)
        with self.work.worker_for(self.run.model) as worker:
            asked = {"train": self.run.data("train"), "evaluation": self.run.data("eval")}
            slices = {"slices": list(self.run.recipe.data.slices)}
            told = f"loading {self.run.model.name}"
            opened: Document = self.work.call(
                worker, "source", "compress:open_recipe", naming | asked | slices, what=told, failure=SourceError
            )
            self.work.context.progress.finish("source", f"{opened['parameters']:,} parameters", ok=True)
            key = key_of(self._identity(opened))
            folder, record = self._original(worker, naming | asked, opened, key)
        self.opened, self.dense = opened, folder
        records = [record]
        with self._trainer() as worker:
            for number, stage in enumerate(self.run.recipe.stages):
                if stage.kind == "quantize":
                    break
                key, folder, record = self._stage(worker, number, stage, key, folder)
                records.append(record)
        return Compressed(folder / "model.pt2", self._card(folder), opened, records, self.dense)

    def _trainer(self) -> Worker:
        """Return the worker of all stages: its imports are paid once; training takes the time it takes."""
        environment = {"OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads cost dearly where others compute too
        if not self.run.trust:
            environment["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        limits = replace(self.work.context.limits, timeout_s=math.inf)
        return Worker(environment=environment, limits=limits, cancel=self.work.context.cancel)

    def _original(self, worker: Worker, asked: Document, opened: Document, key: str) -> tuple[Path, Document]:
        out = self.folder / "original"
        threads = {"threads": self.work.context.jobs}
        kept = self._kept(key, out)
        if kept is None:
            arguments = asked | threads | {"data": str(self.data), "out": str(out)}
            record: Document = self.work.call(
                worker, "dense model", "compress:original", arguments, what="judging the model", failure=ConversionError
            )
            record = {"stage": "original", **record}
            self._keep(key, out, record)
        else:
            record = kept
            names = {k: opened["data"][n]["source"] for k, n in (("train", "train"), ("evaluation", "eval"))}
            arguments = asked | names | {"data": str(self.data)}
            self.work.call(
                worker, "dense model", "compress:samples", arguments, what="reading data", failure=ConversionError
            )
        self._told("dense model", record, kept is not None)
        return out, record | {"key": key, "cached": kept is not None}

    def _stage(
        self, worker: Worker, number: int, stage: Stage, before: str, folder: Path
    ) -> tuple[str, Path, Document]:
        name = f"{number} {stage.kind}"
        options = stage.options
        teacher = self._teacher(options)
        parts: Document = {"stage": stage.kind, "options": options.model_dump(mode="json"), "input": before}
        parts |= {"seed": self.run.recipe.seed, "data": self.opened["data"], "own": _own_sha256(), "tools": _tools()}
        if stage.kind in TRAINING:
            parts |= {"device": self.run.device, "teacher": teacher and self._teacher_sha256(teacher)}
            if self.run.processes > 1:
                parts["devices"] = self.run.processes
        key = key_of(parts)
        out = self.folder / name.replace(" ", "-")
        if self.run.force and self.work.context.cache is not None:
            shutil.rmtree(self.work.context.cache.root / CHECKPOINTS / key, ignore_errors=True)
        record = self._kept(key, out)
        cached = record is not None
        if record is None:
            started = time.monotonic()
            with self._checkpoint(key) as checkpoint:
                arguments = {
                    "kind": stage.kind,
                    "options": options.model_dump(mode="json"),
                    "program": str(folder / "model.pt2"),
                    "dense": str(self.dense / "model.pt2"),
                    "teacher": None if teacher is None else _naming(teacher),
                    "inputs": self.opened["inputs"],
                    "task": self.opened["task"],
                    "data": str(self.data),
                    "out": str(out),
                    "seed": self.run.recipe.seed,
                    "device": self.run.device,
                    "devices": self.run.devices,
                    "nodes": asdict(self.run.nodes),
                    "checkpoint": str(checkpoint),
                    "threads": self.work.context.jobs,
                }
                record = self.work.call(
                    worker, name, "compress:stage", arguments, what=f"stage {name}", failure=ConversionError
                )
                record["seconds"] = round(time.monotonic() - started, 2)
                self._keep(key, out, record)
        assert record is not None
        self._told(name, record, cached)
        told = {"key": key, "options": options.model_dump(mode="json", exclude_defaults=True), "cached": cached}
        return key, out, record | told

    def _kept(self, key: str, out: Path) -> Document | None:
        cache_ = self.work.context.cache
        if cache_ is None:
            return None
        if self.run.force:
            cache_.drop(key)
            return None
        return cache_.get(key, out)

    def _keep(self, key: str, out: Path, record: Document) -> None:
        if self.work.context.cache is not None:
            self.work.context.cache.put(key, out, record)

    @contextlib.contextmanager
    def _checkpoint(self, key: str) -> Iterator[Path]:
        """Yield the file that a stage may keep its state in; another run at the same stage gets one of its own."""
        own = self.folder / "checkpoint.pt"
        cache_ = self.work.context.cache
        if cache_ is None:
            yield own
            return
        place = cache_.root / CHECKPOINTS / key
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = (place / ".lock").open("w")
        except OSError:  # a cache that cannot be written only means that nothing is kept
            yield own
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield own
                return
            yield place / "checkpoint.pt"
            shutil.rmtree(place, ignore_errors=True)

    def _identity(self, opened: Document) -> Document:
        told = {name: opened[name] for name in ("sha256", "task", "inputs", "data")}
        return told | {"own": _own_sha256(), "tools": _tools(), "stage": "original"}

    def _teacher(self, options: Any) -> Source | None:
        if not isinstance(options, DistillOptions) or options.teacher is None:
            return None
        return Source(_here(options.teacher, self.run.folder), None, self.run.trust)

    def _teacher_sha256(self, teacher: Source) -> str:
        """Return a digest of the files beside a teacher's card or code, else of its name."""
        path = Path(teacher.name.rpartition(":")[0] if ".py:" in teacher.name else teacher.name)
        if not path.is_file():
            return teacher.name
        files = path.parent.iterdir() if path.suffix in (".py", ".yaml", ".yml") else [path]
        return key_of({f.name: file_sha256(f) for f in sorted(files) if f.is_file()})

    def _told(self, name: str, record: Document, cached: bool) -> None:
        found = record["evaluation"]
        told = f"{record['counts']['params']:,} parameters"
        if found["metric"] is not None:
            told += f", {found['metric']} {found[found['metric']]:.4f}"
        self.work.context.progress.finish(name, told + (", from the cache" if cached else ""), ok=True)

    def _card(self, folder: Path) -> Path:
        """Write a card that names the compressed model with everything else as the original's card says."""
        card = dict(self.opened["card"])
        base = Path(self.opened["folder"])
        named = {n: self.opened["data"][n]["source"] for n in ("train", "eval")}
        card["source"], card["arch"] = "model.pt2", None
        card["data"] = {"calibration": _here(named["train"], base), "eval": _here(named["eval"], base)}
        card["inputs"] = [
            {"name": s["name"], "shape": s["shape"], "dtype": s["dtype"], "layout": s.get("layout", "")}
            for s in self.opened["inputs"]
        ]
        tokenizer = card["preprocess"].get("tokenizer")
        if tokenizer is not None:
            card["preprocess"] = card["preprocess"] | {"tokenizer": str((base / tokenizer).resolve())}
        path = folder / f"{self.opened['name']}.yaml"
        path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
        return path


def _require_shares(place: str, options: Any, devices: int) -> None:
    if isinstance(options, TrainingSettings) and options.batch_size < devices:
        raise UsageError(f"{place}: a batch of {options.batch_size} samples cannot be shared by {devices} devices")


def _naming(source: Source) -> Document:
    return {
        "source": source.name,
        "arch": source.arch,
        "trust": source.trust,
        "shapes": [list(shape) for shape in source.shapes],
    }


def _here(name: str, folder: Path) -> str:
    """Return a name with its path made absolute, where it is a path that exists."""
    file, colon, factory = name.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{(folder / file).resolve()}:{factory}"
    path = folder / name
    return str(path.resolve()) if path.exists() else name


def _arch(name: str | None, folder: Path) -> str | None:
    return None if name is None else _here(name, folder)


def _tools() -> Document:
    found: Document = {}
    for package in TOOLS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def _own_sha256() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    files = [*root.glob("training/*.py"), *root.glob("stages/*.py"), root / "tasks" / "compress.py"]
    for file in sorted(files):
        digest.update(file_sha256(file).encode())
    return digest.hexdigest()
