"""How far a quantized network's outputs are from the float network's, summed over samples as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from edgeopt.core.detection import TASKS as DETECTION
from edgeopt.stages.batched_graph import BatchedGraph

aten = torch.ops.aten
CLASSIFICATION = ("image-classification", "text-classification", "token-classification")
EQUAL_DB = 300.0
Outputs = Sequence[torch.Tensor]
SampleMetric = Callable[[Outputs, torch.Tensor], torch.Tensor]
"""Takes outputs of shape (samples, *exported shape) and labels; returns one score per sample, higher is better."""


@dataclass(frozen=True)
class Score:
    """What quantization left of the network's answers.

    Attributes:
        snr_db: 10 log10 of reference power over error power of the worst output; 300 where nothing changed. Outputs
            that are a concatenation (a detector's boxes and scores) are judged part by part.
        agreement: share of samples with the same top-1 answer; None where the task has no classes.
        metric: mean of the task's metric; None without labels.
        overlap: of a detector, mean intersection over union of its boxes with the float network's, each weighted by the
            float network's score; a box of another class overlaps nothing. None for other tasks.
    """

    snr_db: float
    agreement: float | None
    metric: float | None
    overlap: float | None = None

    def task_metric(self) -> float | None:
        """Return the metric where labels are known, else the agreement or the overlap, else None."""
        if self.metric is not None:
            return self.metric
        return self.overlap if self.agreement is None else self.agreement


def top1(outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 for every sample whose largest score is that of its label; labels of shape (samples, batch)."""
    return (outputs[0].argmax(-1).flatten(1) == labels.flatten(1)).float().mean(1)


@dataclass(frozen=True)
class Judge:
    """Compares outputs with the float network's.

    Attributes:
        parts: for each output the axis (of the exported shape) along which it is a concatenation, and its parts' sizes.
        classes: whether the first output holds one score per class.
        metric: of labelled samples.
        boxes: whether the first two outputs are a detector's boxes (batch, 4, n), left, top, right, bottom, and scores
            (batch, classes, n).
    """

    parts: tuple[tuple[int, tuple[int, ...]] | None, ...]
    classes: bool
    metric: SampleMetric | None = None
    boxes: bool = False

    @classmethod
    def of(cls, graph: BatchedGraph, task: str, metric: SampleMetric | None) -> Judge:
        """Return the judge for a graph: classes are the task's, or those of one single output [batch, scores]."""
        outputs = graph.returned
        shapes = [tuple(n.meta["val"].shape) for n in outputs]
        scores = len(shapes[0]) >= 2 and shapes[0][-1] >= 2 and outputs[0].meta["val"].is_floating_point()
        generic = task == "generic" and len(outputs) == 1 and len(shapes[0]) == 2
        classes = scores and (task in CLASSIFICATION or generic)
        boxes = task in DETECTION and _hold_boxes(shapes)
        return cls(tuple(_parts(n) for n in outputs), classes, metric or (top1 if classes else None), boxes)

    def tally(self) -> Tally:
        """Return an empty sum."""
        return Tally(self)

    def split(self, outputs: Outputs) -> list[torch.Tensor]:
        """Return all parts of all outputs."""
        found: list[torch.Tensor] = []
        for output, part in zip(outputs, self.parts, strict=True):
            found += [output] if part is None else torch.split(output, list(part[1]), part[0] + 1)
        return found


@dataclass
class Tally:
    """Sums from which a score is made."""

    judge: Judge
    signal: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    same: int = 0
    answers: int = 0
    scored: float = 0.0
    samples: int = 0
    overlapping: float = 0.0
    weight: float = 0.0

    def add(self, reference: Outputs, actual: Outputs, labels: torch.Tensor | None) -> None:
        """Add samples; outputs are of shape (samples, *exported shape)."""
        pairs = list(zip(self.judge.split(reference), self.judge.split(actual), strict=True))
        self.signal = self.signal or [0.0] * len(pairs)
        self.noise = self.noise or [0.0] * len(pairs)
        for index, (a, b) in enumerate(pairs):
            wanted, got = a.double(), b.double()
            self.signal[index] += float(wanted.square().sum())
            self.noise[index] += float((wanted - got).square().sum())
        if self.judge.classes:
            same = reference[0].argmax(-1) == actual[0].argmax(-1)
            self.same += int(same.sum())
            self.answers += same.numel()
        if self.judge.boxes:
            overlapping, weight = _overlap(reference, actual)
            self.overlapping += overlapping
            self.weight += weight
        if labels is not None and self.judge.metric is not None:
            self.scored += float(self.judge.metric(actual, labels).sum())
            self.samples += len(labels)

    def score(self) -> Score:
        """Return the score of all samples added."""
        snr = min(decibel(s, n) for s, n in zip(self.signal, self.noise, strict=True))
        agreement = self.same / self.answers if self.answers else None
        metric = self.scored / self.samples if self.samples else None
        if not self.judge.boxes:
            return Score(snr, agreement, metric)
        return Score(snr, agreement, metric, self.overlapping / self.weight if self.weight else 1.0)


def decibel(signal: float, noise: float) -> float:
    """Return 10 log10 of the ratio of two powers, within ±300."""
    if not math.isfinite(noise) or not math.isfinite(signal):
        return -EQUAL_DB
    if noise == 0:
        return EQUAL_DB
    return -EQUAL_DB if signal == 0 else max(-EQUAL_DB, min(EQUAL_DB, 10 * math.log10(signal / noise)))


def _hold_boxes(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether the first two of an exported program's outputs are boxes and the scores of their classes."""
    if len(shapes) < 2 or any(len(s) != 3 for s in shapes[:2]):
        return False
    boxes, scores = shapes[:2]
    return boxes[1] == 4 and boxes[0] == scores[0] and boxes[2] == scores[2]


def _overlap(reference: Outputs, actual: Outputs) -> tuple[float, float]:
    """Return the sums over all boxes of weighted overlap and of weight; see `Score.overlap`."""
    (wanted, certain), (got, scored) = ((side[0].double(), side[1].double()) for side in (reference, actual))
    sides = torch.minimum(wanted[..., 2:, :], got[..., 2:, :]) - torch.maximum(wanted[..., :2, :], got[..., :2, :])
    common = sides.clamp(min=0).prod(-2)
    areas = [(b[..., 2:, :] - b[..., :2, :]).clamp(min=0).prod(-2) for b in (wanted, got)]
    union = areas[0] + areas[1] - common
    best, kind = certain.max(-2)
    weight = best.clamp(min=0)
    same = kind == scored.argmax(-2)
    shares = torch.where(same & (union > 0), common / union.clamp(min=1e-12), 0.0)
    return float((weight * shares).sum()), float(weight[union > 0].sum())


def _parts(node: Node) -> tuple[int, tuple[int, ...]] | None:
    """Follow an output back through transpositions to the concatenation that made it, if one did."""
    axes = list(range(node.meta["val"].ndim))
    for _ in range(100):
        before = node.args[0] if node.args else None
        if node.target is aten.cat.default:
            tensors, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
            assert isinstance(tensors, (list, tuple)) and isinstance(axis, int)
            sizes = tuple(int(t.meta["val"].shape[axis]) for t in tensors if isinstance(t, Node))
            place = axes.index(axis % len(axes))
            return (place, sizes) if len(sizes) == len(tensors) and place > 0 else None
        if node.target is aten.permute.default:
            order = node.args[1]
            assert isinstance(order, (list, tuple))
            axes = [int(order[a]) for a in axes]  # type: ignore[arg-type]
        elif node.target is aten.transpose.int:
            first, second = (int(a) % len(axes) for a in node.args[1:3])  # type: ignore[arg-type]
            swap = {first: second, second: first}
            axes = [swap.get(a, a) for a in axes]
        elif node.target not in (aten.contiguous.default, aten.clone.default, aten.alias.default):
            return None
        if not isinstance(before, Node):
            return None
        node = before
    return None
