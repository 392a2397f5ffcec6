"""Trains a network further on labels: what pruning broke, or a new task's data."""

from __future__ import annotations

from torch.fx import GraphModule

from edgeopt.core.errors import UsageError
from edgeopt.core.training import FinetuneOptions
from edgeopt.training.evaluation import scores_classes
from edgeopt.training.examples import Examples
from edgeopt.training.network import outputs_of
from edgeopt.training.objectives import Labels


def finetuning(network: GraphModule, samples: Examples, options: FinetuneOptions, task: str) -> Labels:
    """Return the objective of fine-tuning; `training.loop.fit` does the work.

    Raises:
        UsageError: the model scores no classes, or the data have no labels that fit.
    """
    inputs, _ = samples.batch(samples.labels[:0].nonzero()[0])
    inputs = tuple(x.new_zeros((2, *x.shape[1:])) for x in inputs)
    output = outputs_of(network, inputs)[0]
    if not scores_classes(task, output):
        raise UsageError("finetune learns from classes, which this model does not score; distill needs none")
    require_labels(samples, output.shape[1], "finetune")
    return Labels(network, options.label_smoothing)


def require_labels(samples: Examples, classes: int, stage: str) -> None:
    """Make sure that every sample has a class that the model scores.

    Raises:
        UsageError: one has not.
    """
    if not samples.labelled:
        raise UsageError(f"{stage} learns from labels: the training data lack some or all")
    if int(samples.labels.max()) >= classes:
        raise UsageError(f"{stage}: the data have class {int(samples.labels.max())}, the model scores {classes}")
