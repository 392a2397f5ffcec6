"""The scores of artifacts as tables for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = dict[str, Any]
CLASSES = 5
EXAMPLES = 8


def show_evaluation(document: Document, console: Console) -> None:
    """Print one row per artifact, then what changed: the classes hit hardest, groups and examples."""
    data, reference = document["data"], document["reference"]
    title = f"{document['model']['name']}: {data['verified']} samples of {data['source']}"
    if reference is not None:
        title += f", against {reference['name']}"
    console.print(_scores(document, title))
    for note in filter(None, [data.get("note")]):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    for artifact in document["artifacts"]:
        _show_damage(artifact, document, console)
    for failure in document["failures"]:
        told = f"{failure['format']} {failure['precision']} failed: {failure['reason']}"
        console.print(Text(told, "red"), soft_wrap=True)


def _scores(document: Document, title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("format", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    kind = document["artifacts"][0]["metrics"]["kind"] if document["artifacts"] else "none"
    columns = {
        "classification": ("top-1", "top-5", "F1", "ECE", "agree", "lost", "gained", "p"),
        "embedding": ("cosine", "lowest", "Spearman"),
        "detection": ("mAP50", "mAP50-95", "lost", "lost"),
        "none": ("agree",),
    }[kind]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    reference = document["reference"]
    rows: list[Document] = []
    if reference is not None and kind in ("classification", "detection"):
        rows = [{"format": "original", "precision": "", "metrics": reference["metrics"], "against": None}]
    for row in [*rows, *document["artifacts"]]:
        table.add_row(row["format"], row["precision"], *_cells(kind, row["metrics"], row["against"] or {}))
    return table


def _cells(kind: str, metrics: Document, against: Document) -> list[str]:
    agree = _share(against.get("agreement"))
    if kind == "classification":
        counts = [str(against[k]) if k in against else "" for k in ("lost", "gained")]
        scores = [_share(metrics[k]) for k in ("top1", "top5", "f1_macro")]
        chance = f"{against['p_value']:.2g}" if "p_value" in against else ""
        return [*scores, f"{metrics['calibration_error']:.4f}", agree, *counts, chance]
    if kind == "detection":
        scores = [_share(metrics.get(k)) for k in ("map50", "map50_95")]
        return [*scores, *(_share(against.get(f"{k}_drop")) for k in ("map50", "map50_95"))]
    if kind == "embedding":
        ranked = metrics["spearman"]
        return [f"{metrics['cosine']:.6f}", f"{metrics['cosine_min']:.6f}", "" if ranked is None else f"{ranked:.5f}"]
    return [agree]


def _show_damage(artifact: Document, document: Document, console: Console) -> None:
    name = f"{artifact['format']} {artifact['precision']}"
    against = artifact["against"] or {}
    hit = [r for r in against.get("per_class", []) if r["drop"] > 0][:CLASSES]
    if hit:
        told = ", ".join(f"{r['name']} {-100 * r['drop']:+.1f} pt of {r['samples']}" for r in hit)
        console.print(Text(f"{name}: classes hit hardest: {told}"), soft_wrap=True)
    for row in artifact["slices"]:
        drop = "" if row["drop"] is None else f" ({-100 * row['drop']:+.2f} pt)"
        told = f"{row['column']} = {row['value']}: top-1 {_share(row['top1'])}{drop} of {row['samples']}"
        console.print(Text(f"{name}: {told}"), soft_wrap=True)
    changed = artifact.get("changed") or []
    for index in changed[:EXAMPLES]:
        console.print(Text(f"{name}: {changed_example(document, artifact, index)}"), soft_wrap=True)
    if len(changed) > EXAMPLES:
        console.print(f"{name}: and {len(changed) - EXAMPLES} more changed answers (all in --json)", highlight=False)


def changed_example(document: Document, artifact: Document, index: int) -> str:
    """Return one changed answer in a line: the sample, its label, the answer before and after."""
    sample = document["samples"][index]
    names = document["model"]["labels"] or []
    before = class_name(names, document["reference"]["answers"][index])
    after = class_name(names, artifact["answers"][index])
    text = f" “{sample['text'][:60]}”" if sample.get("text") else ""
    label = "" if sample["label"] is None else f", label {class_name(names, sample['label'])}"
    return f"sample {sample['id']}{text}{label}: {before} → {after}"


def class_name(names: list[Any], index: int) -> str:
    """Return a class's name; its number where it has none."""
    if index < 0:
        return "no answer"
    return str(names[index]) if index < len(names) else str(index)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
