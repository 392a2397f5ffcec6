"""The record of a recipe's run: what it depended on, what each stage did to the model, and what came out."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgeopt.compression import Compressed, RecipeRun
from edgeopt.steps import Document, Plan

PACKAGES = ("edgeopt", "torch", "torchao", "lightning", "torch-pruning", "torchmetrics", "onnxruntime", "numpy")
HARDEST = 5


def run_record(job: RecipeRun, made: Compressed, artifacts: list[Document], seconds: float) -> Document:
    """Return what `run.json` holds: recipe, seed, versions, data, metrics of every stage and artifact."""
    return {
        "recipe": job.recipe.model_dump(mode="json"),
        "seed": job.recipe.seed,
        "device": job.device,
        "devices": job.devices,
        "nodes": job.nodes.count,
        "versions": {p: v for p in PACKAGES if (v := _version(p)) is not None} | {"python": sys.version.split()[0]},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "model": {name: made.opened[name] for name in ("name", "source", "sha256", "task", "parameters")},
        "data": made.opened["data"],
        "stages": made.records,
        "per_class": per_class(made),
        "artifacts": [
            {
                name: a[name]
                for name in ("format", "precision", "path", "size_bytes", "sha256", "metrics", "against_original")
            }
            for a in artifacts
        ],
        "seconds": seconds,
    }


def add_metrics(artifacts: list[Document], made: Compressed, what: Plan, prepared: Document) -> None:
    """Give each artifact its `metrics`: its own accuracy, and that of the model as it came on the same samples."""
    dense = _dense_top1(made, what, prepared)
    for artifact in artifacts:
        parity = artifact["parity"]
        top1 = parity["top1"]
        artifact["metrics"] = {
            "samples": parity["samples"],
            "top1": top1,
            "original_top1": dense,
            "drop": None if top1 is None or dense is None else round(dense - top1, 6),
            "agreement_with_compressed": parity["agreement"],
        }


def per_class(made: Compressed) -> Document:
    """Return the share of right answers per class before and after, and the classes that lost most."""
    before = made.records[0]["evaluation"]["per_class"]
    after = made.records[-1]["evaluation"]["per_class"]
    names = made.opened["card"].get("labels") or []

    def name(index: str) -> str:
        return names[int(index)] if int(index) < len(names) else index

    rows = {name(c): {"before": value, "after": after[c]} for c, value in before.items() if c in after}
    lost = sorted(rows, key=lambda c: rows[c]["after"] - rows[c]["before"])
    return {"classes": rows, "hit_hardest": [c for c in lost if rows[c]["after"] < rows[c]["before"]][:HARDEST]}


def _dense_top1(made: Compressed, what: Plan, prepared: Document) -> float | None:
    """Return the original's accuracy on the samples that artifacts were executed on, where those can be told."""
    import numpy as np  # only where a recipe was run

    if made.records[0]["evaluation"]["metric"] != "top1":
        return None
    answers = np.load(made.dense / "answers.npy").argmax(1)
    labels = np.load(made.dense.parent / "data" / "eval" / "labels.npy")
    data: Any = made.opened["data"]
    start = 0
    if data["train"]["source"] == data["eval"]["source"] and prepared["data"]["calibrated"]:
        start = int(prepared["data"]["calibrated"])
        start = 0 if start >= len(labels) else start
    chosen = np.random.default_rng(0).permutation(len(labels))[start : start + what.samples]
    return float((answers[chosen] == labels[chosen]).mean())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
