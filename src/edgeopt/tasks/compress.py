"""What a recipe's stages do inside their worker: read a program, change or train it, judge it, write it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt import plugins
from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.model import Model, TensorSpec
from edgeopt.core.pruning import PruneOptions, SparsifyOptions
from edgeopt.core.recipe import TRAINING
from edgeopt.core.training import CutDepthOptions, DistillOptions, FinetuneOptions, TrainingSettings
from edgeopt.data import open_data
from edgeopt.scratch import ScratchFolder
from edgeopt.sources.request import understand
from edgeopt.sources.torchvision_ops import import_torchvision
from edgeopt.tasks.prepare import labels_of, load
from edgeopt.tasks.samples import Choice, store_inputs
from edgeopt.tasks.shared_training import launch
from edgeopt.training.network import export, to_network, to_program
from edgeopt.worker import report

Record = dict[str, Any]
CHANGED_LISTED = 50


def open_recipe(
    *,
    source: str,
    arch: str | None,
    trust: bool,
    shapes: list[list[int]],
    train: str | None,
    evaluation: str | None,
    slices: list[str],
) -> Record:
    """Load a model and open its data; returns what both are, which decides whether anything is new.

    Raises:
        UsageError: there is no evaluation data, or it has no column to slice by of such a name.
    """
    report("loading")
    model, base = _load(source, arch, trust, shapes)
    train, evaluation = _names(model, train, evaluation)
    card = model.card
    labels = labels_of(card, base)
    slices = slices or list(card.data.slices)
    if slices:
        columns = open_data(evaluation, card, model.inputs, base)[0].slices
        for column in slices:
            if column not in columns:
                told = did_you_mean(column, columns) if columns else ": it has no further columns"
                raise UsageError(f"data.slices: {evaluation} has no column {column!r}{told}")
    card_text = card.model_copy(update={"labels": tuple(labels) if labels else None}).model_dump(mode="json")
    return {
        "name": model.name,
        "source": model.source,
        "sha256": model.sha256,
        "task": card.task,
        "card": card_text,
        "folder": str(base),
        "inputs": [s.to_json() for s in model.inputs],
        "slices": slices,
        "parameters": sum({id(p): p.numel() for p in model.module.parameters()}.values()),
        "data": {
            kind: {"source": name, "samples": len(data), "fingerprint": data.fingerprint()}
            for kind, name in (("train", train), ("eval", evaluation))
            for data in (open_data(name, card, model.inputs, base),)
        },
    }


def original(
    *,
    source: str,
    arch: str | None,
    trust: bool,
    shapes: list[list[int]],
    train: str | None,
    evaluation: str | None,
    data: str,
    out: str,
    threads: int,
) -> Record:
    """Export the model for any number of samples to `out/model.pt2`, store all samples under `data`, and judge it."""
    torch.set_num_threads(threads)
    model, base = _load(source, arch, trust, shapes)
    train, evaluation = _names(model, train, evaluation)
    for kind, name in (("train", train), ("eval", evaluation)):
        report(f"reading {name}")
        opened = open_data(name, model.card, model.inputs, base)
        store_inputs(Choice(range(len(opened)), opened.__getitem__), model.inputs, Path(data, kind))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(export(model.module, model.inputs), folder / "model.pt2")
    return _judged(folder, model.inputs, model.card.task, Path(data), None)


def samples(
    *, source: str, arch: str | None, trust: bool, shapes: list[list[int]], train: str, evaluation: str, data: str
) -> None:
    """Store all samples under `data`, where the model itself came from the cache."""
    model, base = _load(source, arch, trust, shapes)
    for kind, name in (("train", train), ("eval", evaluation)):
        report(f"reading {name}")
        opened = open_data(name, model.card, model.inputs, base)
        store_inputs(Choice(range(len(opened)), opened.__getitem__), model.inputs, Path(data, kind))


def stage(
    *,
    kind: str,
    options: Record,
    program: str,
    dense: str,
    teacher: Record | None,
    inputs: list[Record],
    task: str,
    data: str,
    out: str,
    seed: int,
    device: str,
    devices: int,
    nodes: Record,
    checkpoint: str,
    threads: int,
    fabric: Any = None,
) -> Record:
    """Perform one stage and judge what it made; returns its record.

    A stage that trains on several devices is performed by as many processes, and written by the first of each machine.

    Args:
        kind: `prune`, `sparsify`, `cut_depth`, `finetune` or `distill`.
        options: of that stage.
        program: exported program that the stage before wrote.
        dense: that of the model as it came, with `answers.npy` beside it.
        teacher: how to load another teacher than `dense`.
        inputs: of the model.
        task: of the model.
        data: folder with `train/` and `eval/`.
        out: folder to write `model.pt2` and `answers.npy` to.
        seed: of everything random.
        device: that trains.
        devices: how many of this machine.
        nodes: fields of `core.training.Nodes`.
        checkpoint: file to keep the state of training in.
        threads: that PyTorch may use.
        fabric: of this process, where several train together.
    """
    if devices * nodes["count"] > 1 and kind in TRAINING and fabric is None:
        arguments = {name: value for name, value in locals().items() if name != "fabric"}
        _import_training()
        Path(out).mkdir(parents=True, exist_ok=True)
        return launch(arguments | {"threads": max(1, threads // devices)}, Path(out))
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    network = to_network(torch.export.load(program))
    made, record = _WORK[kind](
        network, options, specs, task, Path(data), seed, device, Path(checkpoint), dense, teacher, fabric
    )
    if fabric is not None and fabric.local_rank:
        return {}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report("exporting")
    torch.export.save(to_program(made, specs), folder / "model.pt2")
    return {"stage": kind, **record, **_judged(folder, specs, task, Path(data), Path(dense).with_name("answers.npy"))}


def _judged(folder: Path, inputs: tuple[TensorSpec, ...], task: str, data: Path, dense: Path | None) -> Record:
    """Run the stored program on the evaluation samples; what it answers is kept in `answers.npy`."""
    _import_training()
    from edgeopt.stages.prune import measure
    from edgeopt.training.evaluation import evaluate
    from edgeopt.training.examples import Examples

    report("evaluating")
    network = to_network(torch.export.load(folder / "model.pt2"))
    reference = None if dense is None else np.load(dense)
    found = evaluate(network, Examples.read(data / "eval", inputs), inputs, task, reference)
    np.save(folder / "answers.npy", found.outputs)
    record: Record = {"evaluation": found.to_json(), "counts": measure(network, inputs)}
    if reference is not None and "agreement" in found.values:
        changed = np.flatnonzero(found.outputs.argmax(1) != reference.argmax(1))
        record["changed"] = {"count": len(changed), "samples": changed[:CHANGED_LISTED].tolist()}
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    record["weights_sha256"] = digest.hexdigest()
    return record


def _prune(network: Any, options: Record, specs: Any, task: str, data: Path, seed: int, *_: Any) -> tuple[Any, Record]:
    _import_training()
    from edgeopt.stages.prune import prune
    from edgeopt.training.examples import Examples

    chosen = PruneOptions(**options)
    samples = Examples.read(data / "train", specs)
    if chosen.latency is None:
        made = prune(network, specs, chosen, samples, task, seed)
        return made.network, {"pruned": made.record}
    from edgeopt.tasks.prune_speed import SpeedOfFiles

    with ScratchFolder("edgeopt-timed-", data.parent) as folder:
        report(f"exporting the model to {chosen.latency_format}")
        speed = SpeedOfFiles(network, specs, chosen.latency_format, data / "train", folder / "files")
        made = prune(network, specs, chosen, samples, task, seed, speed)
        made.record["latency"] |= speed.record()
    return made.network, {"pruned": made.record}


def _sparsify(network: Any, options: Record, *_: Any) -> tuple[Any, Record]:
    from edgeopt.stages.sparsify import sparsify

    made, record = sparsify(network, SparsifyOptions(**options))
    return made, {"sparsified": record}


def _cut_depth(network: Any, options: Record, *_: Any) -> tuple[Any, Record]:
    from edgeopt.stages.cut_depth import cut_depth

    made, record = cut_depth(network, CutDepthOptions(**options))
    return made, {"cut": record}


def _finetune(
    network: Any,
    options: Record,
    specs: Any,
    task: str,
    data: Path,
    seed: int,
    device: str,
    checkpoint: Path,
    _dense: str,
    _teacher: Record | None,
    fabric: Any,
) -> tuple[Any, Record]:
    _import_training()
    from edgeopt.stages.finetune import finetuning
    from edgeopt.training.examples import Examples

    chosen = FinetuneOptions(**options)
    train = Examples.read(data / "train", specs)
    objective = finetuning(network, train, chosen, task)
    return network, _fit(objective, train, chosen, specs, task, data, seed, device, checkpoint, fabric)


def _distill(
    network: Any,
    options: Record,
    specs: Any,
    task: str,
    data: Path,
    seed: int,
    device: str,
    checkpoint: Path,
    dense: str,
    teacher: Record | None,
    fabric: Any,
) -> tuple[Any, Record]:
    _import_training()
    from edgeopt.stages.distill import distillation
    from edgeopt.training.examples import Examples

    chosen = DistillOptions(**options)
    train = Examples.read(data / "train", specs)
    if teacher is None:
        taught = to_network(torch.export.load(dense))
    else:
        report("loading the teacher")
        model, _ = _load(**teacher)
        taught = to_network(export(model.module, model.inputs))
    objective = distillation(network, taught, train, chosen, task)
    record = _fit(objective, train, chosen, specs, task, data, seed, device, checkpoint, fabric)
    objective.release()
    return network, record


def _fit(
    objective: Any,
    train: Any,
    settings: TrainingSettings,
    specs: tuple[TensorSpec, ...],
    task: str,
    data: Path,
    seed: int,
    device: str,
    checkpoint: Path,
    fabric: Any,
) -> Record:
    from edgeopt.stages.sparsify import compressed_bytes, sparsity_record
    from edgeopt.training.evaluation import evaluate
    from edgeopt.training.examples import Examples
    from edgeopt.training.loop import fit

    held_out = Examples.read(data / "eval", specs)

    def metric() -> float:
        found = evaluate(objective.student, held_out, specs, task).value
        if found is None:
            raise UsageError("evaluate_every: this task has no metric without labels")
        return found

    before = compressed_bytes(objective.student) if settings.sparsity is not None else 0
    fitted = fit(
        objective,
        train,
        settings,
        seed=seed,
        device=device,  # type: ignore[arg-type]
        layout=specs[0].layout or "NCHW",
        checkpoint=checkpoint,
        evaluate=metric,
        fabric=fabric,
    )
    record: Record = {"training": asdict(fitted)}
    if settings.sparsity is not None:
        record["sparsified"] = sparsity_record(objective.student, before, settings.sparsity)
    return record


def _load(source: str, arch: str | None, trust: bool, shapes: list[list[int]]) -> tuple[Model, Path]:
    torch.manual_seed(0)
    request = understand(source, arch=arch, trust=trust, shapes=tuple(tuple(s) for s in shapes))
    return load(request), request.folder


def _names(model: Model, train: str | None, evaluation: str | None) -> tuple[str, str]:
    told = model.card.data
    evaluation = evaluation or told.eval
    train = train or told.calibration
    if evaluation is None or train is None:
        missing = "eval" if evaluation is None else "train"
        raise UsageError(f"a recipe needs data to {missing} on: give data.{missing}, or data in the model's card")
    return train, evaluation


def _import_training() -> None:
    """Make the packages that train importable; names the extra where one is missing."""
    import_torchvision()  # lightning imports it
    try:
        import lightning.fabric  # noqa: F401
        import torch_pruning  # noqa: F401
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise plugins.missing_backend(error) from error


_WORK: dict[str, Callable[..., tuple[Any, Record]]] = {
    "prune": _prune,
    "sparsify": _sparsify,
    "cut_depth": _cut_depth,
    "finetune": _finetune,
    "distill": _distill,
}
