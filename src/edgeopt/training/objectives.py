"""What training minimises; an objective is a module, so that Fabric can put it on any device and precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.training.augment import Batch
from edgeopt.training.network import outputs_of


class Objective(nn.Module):
    """A student and the loss of its answers; further parameters of a subclass are trained and thrown away."""

    def __init__(self, student: GraphModule) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        raise NotImplementedError

    def networks(self) -> list[GraphModule]:
        """Return all that a batch goes through."""
        return [self.student]

    def place(self, device: torch.device) -> None:
        """Move what is no trained part of the objective (a teacher) to a device."""


class Labels(Objective):
    """Cross-entropy of the classes."""

    def __init__(self, student: GraphModule, smoothing: float) -> None:
        super().__init__(student)
        self.smoothing = smoothing

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        return cross_entropy(outputs_of(self.student, batch.inputs), batch, self.smoothing)


def cross_entropy(outputs: Sequence[torch.Tensor], batch: Batch, smoothing: float) -> torch.Tensor:
    """Return the cross-entropy of the first output, in the proportion that two samples were mixed by."""
    scores = outputs[0].float()
    loss = nn.functional.cross_entropy(scores, batch.labels, label_smoothing=smoothing)
    if batch.share == 1.0:
        return loss
    other = nn.functional.cross_entropy(scores, batch.others, label_smoothing=smoothing)
    return batch.share * loss + (1 - batch.share) * other
