"""How good a network's answers are, on labelled samples or against another network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from edgeopt.core.model import TensorSpec
from edgeopt.training.examples import Examples
from edgeopt.training.network import has_open_batch, outputs_of

CLASSIFICATION = ("image-classification", "text-classification")
BATCH = 64


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Answers of a network on the evaluation samples.

    Attributes:
        outputs: the first output on every sample, float32, samples first.
        metric: name of the value that counts: `top1`, or `cosine` with the reference's outputs.
        values: every metric by name.
        per_class: share of right answers by class index; empty without labels.
    """

    outputs: np.ndarray
    metric: str | None
    values: dict[str, float] = field(default_factory=dict)
    per_class: dict[int, float] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The metric that counts."""
        return None if self.metric is None else self.values[self.metric]

    def to_json(self) -> dict[str, Any]:
        """Return JSON types, without the outputs."""
        return {
            "samples": len(self.outputs),
            "metric": self.metric,
            **{name: round(value, 6) for name, value in self.values.items()},
            "per_class": {str(k): round(v, 6) for k, v in self.per_class.items()},
        }


def scores_classes(task: str, output: np.ndarray | torch.Tensor) -> bool:
    """Tell whether an output of shape (samples, ...) holds one score per class."""
    return output.ndim == 2 and output.shape[1] >= 2 and (task in CLASSIFICATION or task == "generic")


def answer(network: GraphModule, examples: Examples, inputs: Sequence[TensorSpec]) -> np.ndarray:
    """Return the first output on every sample, float32, samples first; the network is in evaluation mode."""
    is_open = has_open_batch(network)
    size = BATCH if is_open else inputs[0].shape[0]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    made = []
    with torch.no_grad():
        for start in range(0, len(examples), size):
            indices = np.arange(start, start + size)
            indices = indices[indices < len(examples)] if is_open else indices.clip(max=len(examples) - 1)
            batch, _ = examples.batch(indices)
            output = outputs_of(network, [x.to(device) for x in batch])[0].float().cpu().numpy()
            made.append(output[: len(examples) - start])
    return np.concatenate(made)


def evaluate(
    network: GraphModule,
    examples: Examples,
    inputs: Sequence[TensorSpec],
    task: str,
    reference: np.ndarray | None = None,
) -> Evaluation:
    """Run a network on the evaluation samples and score it.

    Args:
        network: in evaluation mode.
        examples: with labels, for accuracy, macro F1, calibration error (15 bins) and cross-entropy.
        inputs: of the network.
        task: decides whether there are classes.
        reference: another network's `outputs`, for agreement and cosine.
    """
    return score(answer(network, examples, inputs), examples.labels if examples.labelled else None, task, reference)


def score(outputs: np.ndarray, labels: np.ndarray | None, task: str, reference: np.ndarray | None = None) -> Evaluation:
    """Score stored outputs; see `evaluate`."""
    values: dict[str, float] = {}
    per_class: dict[int, float] = {}
    metric = None
    classes = scores_classes(task, outputs)
    if reference is not None:
        values["cosine"] = _cosine(outputs, reference)
        metric = "cosine"
        if classes:
            values["agreement"] = float((outputs.argmax(1) == reference.argmax(1)).mean())
            metric = "agreement"
    if classes and labels is not None and int(labels.max()) < outputs.shape[1]:
        scores, truth = torch.from_numpy(outputs), torch.from_numpy(np.ascontiguousarray(labels)).long()
        right = outputs.argmax(1) == labels
        count = outputs.shape[1]
        metric = "top1"
        values["top1"] = float(right.mean())
        if count > 5:
            best = np.argpartition(-outputs, 4, axis=1)[:, :5]
            values["top5"] = float((best == labels[:, None]).any(1).mean())
        chances = scores.softmax(1)
        values["f1"] = float(multiclass_f1_score(chances, truth, count, average="macro"))
        values["calibration_error"] = float(multiclass_calibration_error(chances, truth, count, n_bins=15))
        values["cross_entropy"] = float(torch.nn.functional.cross_entropy(scores, truth))
        per_class = {int(c): float(right[labels == c].mean()) for c in np.unique(labels)}
    return Evaluation(outputs, metric, values, per_class)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(1) / np.maximum(norms, 1e-12)).mean())
