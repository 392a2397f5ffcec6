"""Trains a student on what its teacher answers, on values inside it, and on how its attention relates tokens.

- Answers: G. Hinton, O. Vinyals, J. Dean: "Distilling the Knowledge in a Neural Network", 2015.
- Values inside: A. Romero et al.: "FitNets: Hints for Thin Deep Nets", ICLR 2015; a linear adapter brings the student's
  channels to the teacher's and is thrown away.
- Relations of tokens: W. Wang et al.: "MiniLMv2: Multi-Head Self-Attention Relation Distillation", ACL 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.training import DistillOptions
from edgeopt.stages.attention_values import AttentionValues, last_attention, relations
from edgeopt.stages.finetune import require_labels
from edgeopt.training.augment import Batch
from edgeopt.training.evaluation import scores_classes
from edgeopt.training.examples import Examples
from edgeopt.training.network import layers_named, move, outputs_of, without_probes
from edgeopt.training.objectives import Objective, cross_entropy

FEATURES = 4
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)


class Distillation(Objective):
    """The loss of a student against its teacher.

    Args:
        student: to train.
        teacher: not changed.
        options: what to compare.
        classes: whether the first output scores classes.
        labels: whether labels are learned from too.
        example: inputs, to find out how wide values are.
    """

    def __init__(
        self,
        student: GraphModule,
        teacher: GraphModule,
        options: DistillOptions,
        *,
        classes: bool,
        labels: bool,
        example: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(student)
        self._teacher = [teacher]  # in a list, so that it is no part of what is trained and saved
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        self.options = options
        self.classes = classes
        self.label_share = options.label_share if labels and classes else 0.0
        self.pairs = _pairs(student, teacher, options) if options.feature_weight else []
        self.attention = _attention(student, teacher) if options.relation_weight else None
        self.adapters = nn.ModuleList()
        if self.pairs:
            with torch.no_grad():
                outputs_of(student, example)
                outputs_of(teacher, example)
            generator = torch.Generator().manual_seed(0)
            for pair in self.pairs:
                self.adapters.append(_adapter(pair, generator))

    def networks(self) -> list[GraphModule]:
        """Return student and teacher."""
        return [self.student, self._teacher[0]]

    def place(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        move(self._teacher[0], device)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        outputs = outputs_of(self.student, batch.inputs)
        with torch.no_grad():
            taught = outputs_of(self._teacher[0], batch.inputs)
        loss = (1 - self.label_share) * self._answers(outputs, taught)
        if self.label_share:
            loss = loss + self.label_share * cross_entropy(outputs, batch, self.options.label_smoothing)
        if self.pairs:
            parts = [_feature_loss(p, a) for p, a in zip(self.pairs, self.adapters, strict=True)]
            loss = loss + self.options.feature_weight * torch.stack(parts).mean()
        if self.attention is not None:
            ours, theirs = (side.values() for side in self.attention)
            loss = loss + self.options.relation_weight * relations(ours, theirs)
        return loss

    def release(self) -> None:
        """Take everything that watched the student out of it."""
        for watch in (w for pair in self.pairs for w in pair):
            watch.hook.remove()
        if self.attention is not None:
            for side in self.attention:
                side.release()
            without_probes(self.student)

    def _answers(self, outputs: Sequence[torch.Tensor], taught: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.classes:
            heat = self.options.temperature
            given = torch.log_softmax(outputs[0].float() / heat, -1)
            wanted = torch.log_softmax(taught[0].float() / heat, -1)
            return nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * heat**2
        ratios = [
            (a.float() - b.float()).square().sum() / b.float().square().sum().clamp(min=1e-12)
            for a, b in zip(outputs, taught, strict=True)
            if a.is_floating_point()
        ]
        return torch.stack(ratios).mean()


def distillation(
    student: GraphModule, teacher: GraphModule, samples: Examples, options: DistillOptions, task: str
) -> Distillation:
    """Return the objective of distillation; `training.loop.fit` does the work, then `release` it.

    Raises:
        UsageError: the two models' outputs differ in shape, or a layer or an attention that is to be compared is not
            in both.
    """
    inputs, _ = samples.batch(samples.labels[:0].nonzero()[0])
    inputs = tuple(x.new_zeros((2, *x.shape[1:])) for x in inputs)
    try:
        with torch.no_grad():
            ours, theirs = outputs_of(student, inputs), outputs_of(teacher, inputs)
    except RuntimeError as error:
        raise UsageError("distill: the teacher does not take the student's inputs") from error
    if [o.shape for o in ours] != [t.shape for t in theirs]:
        told = [[list(o.shape[1:]) for o in outputs] for outputs in (ours, theirs)]
        raise UsageError(f"distill: the student's outputs are {told[0]}, the teacher's {told[1]}")
    classes = scores_classes(task, ours[0])
    labels = samples.labelled and options.label_share > 0
    if classes and labels:
        require_labels(samples, ours[0].shape[1], "distill")
    return Distillation(student, teacher, options, classes=classes, labels=labels, example=inputs)


@dataclass
class Watch:
    """The last output of one layer."""

    name: str
    hook: torch.utils.hooks.RemovableHandle
    value: list[torch.Tensor]


def _watch(network: GraphModule, name: str) -> Watch:
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen[:] = [output]

    return Watch(name, network.get_submodule(name).register_forward_hook(keep), seen)


def _pairs(student: GraphModule, teacher: GraphModule, options: DistillOptions) -> list[tuple[Watch, Watch]]:
    ours = [name for name, _ in layers_named(student, LAYERS)]
    theirs = [name for name, _ in layers_named(teacher, LAYERS)]
    shared = [name for name in ours if name in theirs]
    for name in options.features:
        if name not in shared:
            raise UsageError(f"distill: teacher and student share no layer {name!r}{did_you_mean(name, shared)}")
    if not shared:
        raise UsageError("distill: teacher and student have no layer of the same name to compare")
    spread = [shared[(len(shared) - 1) * (i + 1) // (FEATURES + 1)] for i in range(FEATURES)]
    names = options.features or tuple(dict.fromkeys(spread))
    return [(_watch(student, name), _watch(teacher, name)) for name in names]


def _adapter(pair: tuple[Watch, Watch], generator: torch.Generator) -> nn.Module:
    ours, theirs = (watch.value[0] for watch in pair)
    image = ours.ndim == 4
    axis = 1 if image else -1
    mine, wanted = ours.shape[axis], theirs.shape[axis]
    if ours.ndim != theirs.ndim or (image and ours.shape[2:] != theirs.shape[2:]):
        raise UsageError(f"distill: values of {pair[0].name} differ in shape: {list(ours.shape)}, {list(theirs.shape)}")
    adapter = nn.Conv2d(mine, wanted, 1) if image else nn.Linear(mine, wanted)
    with torch.no_grad():
        adapter.weight.copy_(torch.randn(adapter.weight.shape, generator=generator) / mine**0.5)
        assert adapter.bias is not None
        adapter.bias.zero_()
    return adapter


def _feature_loss(pair: tuple[Watch, Watch], adapter: nn.Module) -> torch.Tensor:
    ours, theirs = pair[0].value[0], pair[1].value[0].float()
    made: torch.Tensor = adapter(ours).float()
    return (made - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)


def _attention(student: GraphModule, teacher: GraphModule) -> list[AttentionValues]:
    sides = []
    for kind, network in (("student", student), ("teacher", teacher)):
        side = last_attention(network)
        if side is None:
            raise UsageError(f"distill: the {kind} has no attention whose relations could be compared")
        sides.append(side)
    return sides
