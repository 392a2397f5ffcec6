"""How good the answers of a model are: for classifiers and embeddings, overall, per class and per group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.bench.paired_accuracy import mcnemar
from edgeopt.core.paired import PairedAnswers

Array = npt.NDArray[Any]
CALIBRATION_BINS = 15
MAX_EMBEDDING_PAIRS = 2000


def answers(scores: Array) -> Array:
    """Return the class each row of `scores` (samples, classes) is highest in; a NaN row answers -1."""
    found = np.asarray(np.nan_to_num(scores, nan=-np.inf).argmax(-1), np.int64)
    found[np.isnan(scores).any(-1)] = -1
    return found


def probabilities(scores: Array) -> Array:
    """Return `scores` (samples, classes) as probabilities: as they are where they are some already, else by softmax."""
    values = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    if (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=0.02):
        return values
    powers = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def classification(scores: Array, labels: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a classifier.

    Args:
        scores: (samples, classes), logits or probabilities.
        labels: (samples,), the true class of each.
        names: of the classes; their number may differ from that of the scores.

    Returns:
        `top1`, `top5` (None below six classes), `f1_macro` over the classes that occur, `calibration_error` (expected,
        15 bins of equal width: Guo et al., On Calibration of Modern Neural Networks, 2017), `confusion`
        (true class × answer; the last column counts rows without an answer where there are any) and `per_class`.
    """
    count = max(scores.shape[1], len(names), int(labels.max(initial=0)) + 1)
    told = answers(scores)
    confusion = np.zeros((count, count + 1), np.int64)
    np.add.at(confusion, (labels, np.where(told < 0, count, told)), 1)
    support = confusion.sum(1)
    hits = np.diag(confusion)
    predicted = confusion.sum(0)[:count]
    recall = np.divide(hits, support, out=np.zeros(count), where=support > 0)
    precision = np.divide(hits, predicted, out=np.zeros(count), where=predicted > 0)
    total = recall + precision
    f1 = np.divide(2 * recall * precision, total, out=np.zeros(count), where=total > 0)
    occurs = (support > 0) | (predicted > 0)
    return {
        "samples": len(labels),
        "top1": float((told == labels).mean()),
        "top5": _top(scores, labels, 5) if scores.shape[1] > 5 else None,
        "f1_macro": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "calibration_error": calibration_error(scores, labels),
        "confusion": confusion[:, : count + bool(confusion[:, count].any())].tolist(),
        "per_class": [
            {
                "class": index,
                "name": names[index] if index < len(names) else str(index),
                "samples": int(support[index]),
                "recall": float(recall[index]),
                "precision": float(precision[index]),
                "f1": float(f1[index]),
            }
            for index in range(count)
            if occurs[index]
        ],
    }


def calibration_error(scores: Array, labels: Array) -> float:
    """Return the expected difference between confidence and accuracy, over 15 bins of confidence."""
    chances = probabilities(scores)
    confidence = chances.max(-1)
    right = answers(scores) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        error += float(inside.mean()) * abs(float(right[inside].mean()) - float(confidence[inside].mean()))
    return error


def embedding(vectors: Array, reference: Array) -> dict[str, Any]:
    """Return how an embedding holds against the original's.

    Args:
        vectors, reference: (samples, dimensions).

    Returns:
        `cosine` (mean over samples), `cosine_min`, and `spearman`: the rank correlation of the similarities between all
        pairs of samples (of the first 2,000 pairs), which is what a search by similarity depends on; None where fewer
        than three samples leave nothing to rank.
    """
    a, b = _unit(vectors), _unit(reference)
    cosine = (a * b).sum(-1)
    rows, columns = np.triu_indices(len(a), 1)
    rows, columns = rows[:MAX_EMBEDDING_PAIRS], columns[:MAX_EMBEDDING_PAIRS]
    ranked = spearman((a[rows] * a[columns]).sum(-1), (b[rows] * b[columns]).sum(-1)) if len(a) > 2 else None
    return {
        "samples": len(a),
        "cosine": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "spearman": ranked,
    }


def spearman(a: Array, b: Array) -> float | None:
    """Return the rank correlation of two series, ties sharing their mean rank; None where one is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else None


def damage(told: Array, reference: Array, labels: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return what changed from the original's answers to the artifact's, and which classes it hit.

    `drop_at_least` is what the drop is not below (one-sided, 1 %), `p_value` the chance of so many lost or gained
    samples if both were equally good (exact McNemar test, two-sided).

    Args:
        told, reference: (samples,), the answers of artifact and original.
        labels: (samples,), the true classes.
        names: of the classes.
    """
    paired = paired_answers(told, reference, labels)
    rows: list[dict[str, Any]] = []
    for index in np.unique(labels):
        inside = labels == index
        own = paired_answers(told[inside], reference[inside], labels[inside])
        before = float((reference[inside] == index).mean())
        rows.append(
            {
                "class": int(index),
                "name": names[index] if index < len(names) else str(index),
                "samples": own.samples,
                "reference": before,
                "artifact": before - own.drop,
                "drop": own.drop,
                "lost": own.lost,
                "gained": own.gained,
            }
        )
    rows.sort(key=lambda r: (-r["drop"], -r["lost"], r["class"]))
    return {
        "samples": paired.samples,
        "agreement": float((told == reference).mean()),
        "lost": paired.lost,
        "gained": paired.gained,
        "drop": paired.drop,
        "drop_at_least": paired.lower_bound(),
        "p_value": mcnemar(paired.lost, paired.gained),
        "per_class": rows,
        "hit_hardest": [r["name"] for r in rows if r["drop"] > 0][:5],
    }


def paired_answers(told: Array, reference: Array, labels: Array) -> PairedAnswers:
    """Count the samples that only one of the two answers right."""
    mine, other = told == labels, reference == labels
    return PairedAnswers(len(labels), int((other & ~mine).sum()), int((mine & ~other).sum()))


def by_group(
    told: Array, reference: Array | None, labels: Array, groups: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """Return accuracy for every value of every further column of a table.

    Args:
        told: (samples,), the artifact's answers.
        reference: the original's, or None.
        labels: the true classes.
        groups: of each sample: column → value.
    """
    rows = []
    for column in dict.fromkeys(name for group in groups for name in group):
        values = np.array([group.get(column, "") for group in groups])
        for value in np.unique(values):
            inside = values == value
            row: dict[str, Any] = {
                "column": column,
                "value": str(value),
                "samples": int(inside.sum()),
                "top1": float((told[inside] == labels[inside]).mean()),
                "reference_top1": None,
                "drop": None,
            }
            if reference is not None:
                row["reference_top1"] = float((reference[inside] == labels[inside]).mean())
                row["drop"] = row["reference_top1"] - row["top1"]
            rows.append(row)
    return rows


def _top(scores: Array, labels: Array, k: int) -> float:
    best = np.argpartition(-np.nan_to_num(scores, nan=-np.inf), k - 1, axis=-1)[:, :k]
    return float((best == labels[:, None]).any(-1).mean())


def _unit(vectors: Array) -> Array:
    values = np.nan_to_num(vectors.astype(np.float64))
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-300))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
