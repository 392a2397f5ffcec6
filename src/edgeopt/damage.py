"""What a recipe's stages changed: accuracy per class and per slice before and after, and the answers that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeopt.bundle.reading import write_whole
from edgeopt.compression import Compressed
from edgeopt.core.errors import ConversionError
from edgeopt.steps import Document, Workshop

ANSWERS_FILE = "answers.json"
HARDEST = 5
LISTED = 200
PICTURES = 24
TEXT_LENGTH = 300
MOST_VALUES = 20  # a column with more is no slice unless it is named: an id, a time


def stages_damage(made: Compressed) -> Document:
    """Return how the last stage's model differs from the one as it came, on all evaluation samples.

    Returns:
        `against` (lost, gained, drop and classes, the hardest hit first) and `slices` (a row for each value of each
        column), both None without labels; `slices_hit_hardest`; and the first 200 `changed` samples: wrong where the
        original was right, then right where it was wrong, then the others.
    """
    import numpy as np  # only where a recipe was run

    from edgeopt.bench import accuracy

    found: Document = {"against": None, "slices": None, "slices_hit_hardest": [], "changed_count": 0, "changed": []}
    before_scores = np.load(made.dense / "answers.npy")
    after_scores = np.load(made.program.with_name("answers.npy"))
    record = made.records[0]["evaluation"]
    classes = before_scores.ndim == 2 and "agreement" in made.records[-1]["evaluation"]
    if not classes or before_scores.shape != after_scores.shape:
        return found
    stored = made.dense.parent / "data" / "eval"
    labels = np.load(stored / "labels.npy")
    samples: list[Document] = json.loads((stored / "samples.json").read_bytes())
    before, after = accuracy.answers(before_scores), accuracy.answers(after_scores)
    right = wrong = np.zeros(len(before), bool)
    if record["metric"] == "top1":
        names = [str(n) for n in made.opened["card"].get("labels") or []]
        found["against"] = accuracy.damage(after, before, labels, names)
        groups = _groups(samples, made.opened["slices"])
        rows = accuracy.by_group(after, before, labels, groups)
        rows.sort(key=lambda r: -r["drop"])
        found["slices"] = rows
        found["slices_hit_hardest"] = [f"{r['column']} = {r['value']}" for r in rows if r["drop"] > 0][:HARDEST]
        right, wrong = before == labels, after != labels
    changed = np.flatnonzero(before != after)
    order = sorted(changed.tolist(), key=lambda i: (not (right[i] and wrong[i]), bool(wrong[i]), i))
    found["changed_count"] = len(order)
    for i in order[:LISTED]:
        told: Document = {"index": i, "id": samples[i]["id"], "label": int(labels[i]) if labels[i] >= 0 else None}
        told |= {"before": int(before[i]), "after": int(after[i])}
        if samples[i]["text"] is not None:
            told["text"] = samples[i]["text"][:TEXT_LENGTH]
        found["changed"].append(told)
    return found


def keep_answers(work: Workshop, made: Compressed, damage: Document, bundle: Path) -> None:
    """Write `answers.json`, which `edgeopt report` shows, with small pictures where the inputs are images."""
    if damage["against"] is None and not damage["changed"]:
        return
    data: Document = made.opened["data"]["eval"]
    document = {
        "model": {"name": made.opened["name"], "labels": made.opened["card"].get("labels")},
        "data": {"source": data["source"], "samples": data["samples"]},
        **damage,
        "thumbnails": _pictures(work, made, damage["changed"][:PICTURES]),
    }
    write_whole(bundle / ANSWERS_FILE, json.dumps(document, indent=1) + "\n")


def _groups(samples: list[Document], named: list[str]) -> list[dict[str, str]]:
    """Return the columns to slice by of every sample: those named, else all that have few values."""
    columns: dict[str, set[str]] = {}
    for sample in samples:
        for column, value in sample["slices"].items():
            columns.setdefault(column, set()).add(value)
    chosen = set(named) or {c for c, values in columns.items() if len(values) <= MOST_VALUES}
    return [{c: v for c, v in s["slices"].items() if c in chosen} for s in samples]


def _pictures(work: Workshop, made: Compressed, changed: list[Document]) -> dict[str, Any]:
    if not changed or any("text" in c for c in changed):
        return {}
    arguments = {
        "inputs": made.opened["inputs"],
        "preprocess": made.opened["card"]["preprocess"],
        "indices": [c["index"] for c in changed],
        "folder": str(made.dense.parent / "data" / "eval"),
    }
    with work.worker() as worker:
        drawn: dict[str, Any] = work.call(
            worker, "pictures", "evaluate:thumbnails", arguments, what="drawing examples", failure=ConversionError
        )
    return drawn
