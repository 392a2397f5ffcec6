"""Fine-tunes a network with quantization in the loop, and leaves its weights on the integer grid.

Weights are rounded in every forward pass and gradients pass straight through; their step sizes are learned: S. K. Esser
et al.: "Learned Step Size Quantization", ICLR 2020. By default the float network teaches: G. Hinton, O. Vinyals,
J. Dean: "Distilling the Knowledge in a Neural Network", 2015. Batch normalization is folded before training, so what is
trained is what is shipped.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from edgeopt.core.errors import ConversionError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.core.settings import Settings
from edgeopt.stages.claims import Step
from edgeopt.stages.fake_quantized import Configuration, FakeQuantized
from edgeopt.stages.judgement import Judge, Outputs
from edgeopt.stages.learned_steps import LearnedSteps
from edgeopt.worker import report

Arrays = Mapping[str, np.ndarray]


class TrainingOptions(Settings):
    """How a quantized network is fine-tuned.

    Attributes:
        steps: of the optimizer.
        batch_size: samples per step.
        learning_rate: of weights and biases at the start; it falls to zero along a cosine.
        step_size_rate: of the weights' step sizes, relative to each.
        distill: learn from the float network's outputs: Kullback-Leibler divergence of the classes, or the relative
            squared error of outputs that are no classes. Without it, from labels alone.
        label_share: of the loss that comes from labels when distilling, between 0 and 1.
        temperature: of the distilled classes.
        calibration_samples: that activation ranges are estimated on.
        recalibrations: times that the ranges are estimated again during training.
        checkpoint_every: steps between two checkpoints.
        seed: of the order of samples.
    """

    steps: Annotated[int, Field(ge=1)] = 500
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    step_size_rate: Annotated[float, Field(ge=0)] = 1e-3
    distill: bool = True
    label_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    calibration_samples: Annotated[int, Field(ge=1)] = 64
    recalibrations: Annotated[int, Field(ge=0)] = 3
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        program: in float, weights on the grid: quantizing it rounds nothing any more.
        loss_before, loss_after: on the samples that calibrate, rounded to the grid before and after training.
        steps: performed, those before a resumed checkpoint included.
        seconds: of this call.
    """

    program: torch.export.ExportedProgram
    loss_before: float
    loss_after: float
    steps: int
    seconds: float


def train_quantized(
    program: torch.export.ExportedProgram,
    samples: Arrays,
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
    training: TrainingOptions | None = None,
    labels: Sequence[int] | None = None,
    *,
    task: str = "generic",
    checkpoint: Path | None = None,
) -> Trained:
    """Fine-tune a float program so that it loses little when quantized; the given program stays as it is.

    The batch size of training has nothing to do with the exported one: see `BatchedGraph`. Samples come in a seeded
    order; with a checkpoint file, a run that was stopped goes on where it last saved and ends with the same weights.

    Args:
        program: in float, of fixed shapes.
        samples: an array per input of shape (batches, *exported shape); memory-mapped ones are read as needed.
        inputs: of the program, in order.
        scheme: what to train for.
        options: estimator, block size, units that stay in float; these are trained too.
        training: steps, rates, loss.
        labels: class of each sample, batch by batch.
        task: of the model; decides whether there are classes.
        checkpoint: file to write and to resume from.

    Raises:
        ConversionError: nothing can be quantized, there is no sample, or training diverged.
        UsageError: labels are needed and missing, or the checkpoint belongs to another run.
    """
    started = time.monotonic()
    run = _Run(program, samples, inputs, scheme, options, training or TrainingOptions(), labels, task)
    before = run.loss_on_grid()
    first = run.resume(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    run.train(first, checkpoint, started)
    after = run.loss_on_grid()
    exported = run.export()
    return Trained(exported, before, after, run.options.steps, round(time.monotonic() - started, 2))


class _Run:
    def __init__(
        self,
        program: torch.export.ExportedProgram,
        samples: Arrays,
        inputs: tuple[TensorSpec, ...],
        scheme: Scheme,
        quantization: QuantizationOptions,
        training: TrainingOptions,
        labels: Sequence[int] | None,
        task: str,
    ) -> None:
        self.options = training
        self.inputs = inputs
        self.samples = samples
        self.count = len(samples[inputs[0].name])
        if self.count == 0:
            raise ConversionError("training needs samples: the data gives none")
        self.teacher = FakeQuantized(program, scheme, quantization)
        self.student = FakeQuantized(program, scheme, quantization)
        self.judge = Judge.of(self.student.graph, task, None)
        self.labels = self._checked(labels)
        identity = (scheme, quantization, training, self.count, _digest(self.teacher.module))
        self.identity = hashlib.sha256(repr(identity).encode()).hexdigest()
        order = np.random.default_rng(training.seed).permutation(self.count)
        self.calibration = [order[i : i + 16] for i in range(0, min(self.count, training.calibration_samples), 16)]
        self.teacher.graph.settle(self._batch(self.calibration[0]))
        self.student.calibrate(self._batch(part) for part in self.calibration)
        self.grids = LearnedSteps(self.student.layers())
        self.parameters = [p for p in self.student.module.parameters() if p.is_floating_point()]
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.parameters, "rate": training.learning_rate},
                {"params": self.grids.parameters, "rate": training.step_size_rate},
            ],
            lr=training.learning_rate,
        )

    def train(self, first: int, checkpoint: Path | None, started: float) -> None:
        """Perform the steps from `first` on."""
        total = self.options.steps
        every = max(1, total // (self.options.recalibrations + 1))
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        for step in range(first, total):
            if step and step % every == 0 and step // every <= self.options.recalibrations:
                self._recalibrate()
            falling = (1 + math.cos(math.pi * step / total)) / 2
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * falling
            indices = self._indices(step)
            self.optimizer.zero_grad()
            loss = self._loss(indices, self._configuration())
            loss.backward()  # type: ignore[no-untyped-call]
            if not bool(torch.isfinite(loss)):
                raise ConversionError(f"training diverged at step {step + 1}: lower learning_rate")
            self.optimizer.step()
            done = step + 1
            if done % 10 == 0 or done == total:
                left = (time.monotonic() - started) / (done - first) * (total - done)
                report(f"training {done}/{total}, loss {float(loss.detach()):.4g}, about {left:.0f} s left")
            if checkpoint is not None and (done % self.options.checkpoint_every == 0 or done == total):
                self._save(checkpoint, done)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        if self.options.recalibrations:
            self._recalibrate()

    def loss_on_grid(self) -> float:
        """Return the loss of the samples that calibrate, weights rounded as they would be shipped."""
        with torch.no_grad():
            losses = [float(self._loss(part, self._configuration())) * len(part) for part in self.calibration]
        return sum(losses) / sum(len(part) for part in self.calibration)

    def export(self) -> torch.export.ExportedProgram:
        """Round the weights to their grids and export the float program that holds them."""
        self.grids.settle()
        examples = tuple(tensor[0] for tensor in self._batch(self.calibration[0][:1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own
            return torch.export.export(self.student.module, examples)

    def resume(self, path: Path) -> int:
        """Load a checkpoint; returns the steps done.

        Raises:
            UsageError: it is damaged, or made by a run with other options, data or weights.
        """
        try:
            state = torch.load(path, weights_only=True)
            known = state["identity"] == self.identity
        except Exception as error:
            raise UsageError(f"{path}: not a checkpoint of quantized training; remove it to start anew") from error
        if not known:
            raise UsageError(f"{path}: a checkpoint of other options, data or weights; remove it to start anew")
        for parameter, value in zip([*self.parameters, *self.grids.parameters], state["values"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        for key, step in zip(self.student.steps, state["steps"], strict=True):
            self.student.steps[key] = Step(**step)
        for group, step in zip(self.student.joint_steps, state["joint_steps"], strict=True):
            self.student.joint_steps[group] = Step(**step)
        return int(state["done"])

    def _save(self, path: Path, done: int) -> None:
        state = {
            "identity": self.identity,
            "done": done,
            "values": [p.detach() for p in [*self.parameters, *self.grids.parameters]],
            "optimizer": self.optimizer.state_dict(),
            "steps": [vars(s) for s in self.student.steps.values()],
            "joint_steps": [vars(s) for s in self.student.joint_steps.values()],
        }
        temporary = path.with_name(f".{path.name}.part")
        torch.save(state, temporary)
        temporary.replace(path)

    def _configuration(self) -> Configuration:
        found = self.student.quantized()
        found.weights = self.grids.views(found.weights)
        return found

    def _recalibrate(self) -> None:
        self.student.calibrate((self._batch(part) for part in self.calibration), self._configuration().view)

    def _loss(self, indices: np.ndarray, configuration: Configuration) -> torch.Tensor:
        batch = self._batch(indices)
        outputs = self.student.graph.run(batch, configuration.view)
        parts = []
        if self.options.distill:
            with torch.no_grad():
                taught = self.teacher.graph.run(batch)
            parts.append((1 - self.options.label_share) * self._distance(outputs, taught))
        if not self.options.distill or self.options.label_share:
            assert self.labels is not None
            logits = outputs[0].flatten(0, -2)
            truth = torch.from_numpy(self.labels[indices]).flatten()
            share = self.options.label_share if self.options.distill else 1.0
            parts.append(share * torch.nn.functional.cross_entropy(logits, truth))
        return torch.stack(parts).sum()

    def _distance(self, outputs: Outputs, taught: Outputs) -> torch.Tensor:
        if self.judge.classes:
            heat = self.options.temperature
            given = torch.log_softmax(outputs[0] / heat, -1).flatten(0, -2)
            wanted = torch.log_softmax(taught[0] / heat, -1).flatten(0, -2)
            divergence = torch.nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
            return divergence * heat**2
        pairs = zip(self.judge.split(outputs), self.judge.split(taught), strict=True)
        ratios = [(a - b).square().sum() / b.square().sum().clamp(min=1e-12) for a, b in pairs]
        return torch.stack(ratios).mean()

    def _indices(self, step: int) -> np.ndarray:
        """Return the samples of a step, whatever came before it: each epoch is a permutation of its own."""
        size = min(self.options.batch_size, self.count)
        per_epoch = self.count // size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self.options.seed, epoch + 1)).permutation(self.count)
        return order[place * size : (place + 1) * size]

    def _batch(self, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.stack([self.samples[s.name][i] for i in indices])) for s in self.inputs)

    def _checked(self, labels: Sequence[int] | None) -> np.ndarray | None:
        needed = not self.options.distill or self.options.label_share > 0
        if labels is None or not needed:
            if needed:
                raise UsageError("training without distillation learns from labels: the data has none")
            return None
        width = self.inputs[0].shape[0]
        known = np.asarray(labels, np.int64)[: self.count * width]
        known = np.concatenate([known, np.repeat(known[-1:], self.count * width - len(known))])
        if not self.judge.classes or (known < 0).any():
            raise UsageError("training on labels needs a class for every sample and a model that scores classes")
        return known.reshape(self.count, width)


def _digest(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def arrays_of(batches: Iterator[dict[str, np.ndarray]], inputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Gather batches into the arrays that `train_quantized` takes."""
    gathered = list(batches)
    return {s.name: np.stack([batch[s.name] for batch in gathered]) for s in inputs}
