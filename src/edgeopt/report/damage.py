"""Reads which classes, groups and single answers were hit, from an evaluation or from a recipe's run."""

from __future__ import annotations

from edgeopt.report.contents import Changed, ClassDamage, Damage, Document, Group
from edgeopt.report.evaluation_table import class_name

CHANGED = 24
CLASSES = 15
GROUPS = 40
COMPRESSED = "after the stages"


def evaluation_damage(
    evaluation: Document | None, evaluated: dict[str, Document], names: tuple[str, ...]
) -> tuple[tuple[ClassDamage, ...], int, tuple[Group, ...], tuple[Changed, ...], int]:
    """Return classes and their number, groups, changed answers and their number of evaluated artifacts."""
    classes, class_count = _classes(evaluated, names)
    changed, count = _changed(evaluation, evaluated) if evaluation is not None else ((), 0)
    return classes, class_count, _groups(evaluated, names), changed, count


def stages_damage(answers: Document | None) -> Damage | None:
    """Return what the stages of a recipe's run changed; None where nothing is known of it.

    Args:
        answers: the run's `answers.json`.
    """
    if answers is None:
        return None
    labels = answers["model"].get("labels") or []
    entry = {"against": answers["against"], "slices": answers["slices"]}
    classes, class_count = _classes({COMPRESSED: entry}, (COMPRESSED,))
    pictures = answers.get("thumbnails") or {}
    changed = tuple(
        Changed(
            id=str(told["id"]),
            label=None if told["label"] is None else class_name(labels, int(told["label"])),
            before=class_name(labels, int(told["before"])),
            answers=((class_name(labels, int(told["after"])), (COMPRESSED,)),),
            text=told.get("text"),
            picture=_picture(pictures.get(str(told["index"]))),
        )
        for told in answers["changed"][:CHANGED]
    )
    return Damage(
        told=f"{answers['data']['samples']} samples of {answers['data']['source']}",
        names=(COMPRESSED,),
        classes=classes,
        class_count=class_count,
        groups=_groups({COMPRESSED: entry}, (COMPRESSED,))[:GROUPS],
        hit_hardest=tuple(str(n) for n in (answers["against"] or {}).get("hit_hardest") or ()),
        groups_hit_hardest=tuple(str(n) for n in answers["slices_hit_hardest"]),
        changed=changed,
        changed_count=int(answers["changed_count"]),
    )


def _classes(evaluated: dict[str, Document], names: tuple[str, ...]) -> tuple[tuple[ClassDamage, ...], int]:
    found: dict[str, dict[str, Document]] = {}
    for name, entry in evaluated.items():
        for row in (entry.get("against") or {}).get("per_class") or ():
            found.setdefault(str(row["name"]), {})[name] = row
    rows = []
    for label, by_artifact in found.items():
        first = next(iter(by_artifact.values()))
        drops = tuple(by_artifact[n]["drop"] if n in by_artifact else None for n in names)
        rows.append(ClassDamage(label, int(first["samples"]), float(first["reference"]), drops))
    # Of classes that lost equally, the one that all artifacts together lost most.
    rows.sort(key=lambda r: (-r.worst, -sum(d for d in r.drops if d)))
    return tuple(r for r in rows if any(r.drops))[:CLASSES], len(rows)


def _groups(evaluated: dict[str, Document], names: tuple[str, ...]) -> tuple[Group, ...]:
    found: dict[tuple[str, str], dict[str, Document]] = {}
    for name, entry in evaluated.items():
        for row in entry.get("slices") or ():
            found.setdefault((str(row["column"]), str(row["value"])), {})[name] = row
    groups = []
    for (column, value), rows in found.items():
        first = next(iter(rows.values()))
        accuracies = tuple(rows[n]["top1"] if n in rows else None for n in names)
        groups.append(Group(column, value, int(first["samples"]), first["reference_top1"], accuracies))
    return tuple(groups)


def _changed(evaluation: Document, evaluated: dict[str, Document]) -> tuple[tuple[Changed, ...], int]:
    """Return changed examples: those that most artifacts change first."""
    labels = evaluation["model"].get("labels") or []
    before = (evaluation.get("reference") or {}).get("answers")
    by_index: dict[int, dict[int, list[str]]] = {}
    for name, entry in evaluated.items():
        for index in entry.get("changed") or ():
            by_index.setdefault(int(index), {}).setdefault(int(entry["answers"][index]), []).append(name)
    order = sorted(by_index, key=lambda i: (-sum(len(v) for v in by_index[i].values()), i))
    pictures = evaluation.get("thumbnails") or {}
    found = []
    for index in order[:CHANGED]:
        sample = evaluation["samples"][index]
        answers = tuple((class_name(labels, told), tuple(by)) for told, by in sorted(by_index[index].items()))
        found.append(
            Changed(
                id=str(sample["id"]),
                label=None if sample["label"] is None else class_name(labels, int(sample["label"])),
                before=class_name(labels, int(before[index])) if before is not None else "",
                answers=answers,
                text=sample.get("text"),
                picture=_picture(pictures.get(str(index))),
            )
        )
    return tuple(found), len(order)


def _picture(address: object) -> str | None:
    """Return a picture's address where it is a PNG within the document itself."""
    text = str(address or "")
    return text if text.startswith("data:image/png;base64,") else None
