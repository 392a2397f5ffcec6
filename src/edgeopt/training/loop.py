"""The training loop: Lightning Fabric for device and precision, and everything needed to stop and go on exactly.

What a step does depends on its number and the seed alone (samples, augmentation, dropout, learning rate), so a run that
was killed and resumed from its last checkpoint ends with the same weights as one that was not.

With several devices each computes its share of every batch and Fabric averages the gradients; the first one evaluates,
decides, and writes checkpoints.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from edgeopt.core.errors import ConversionError, UsageError
from edgeopt.core.training import TrainingSettings
from edgeopt.training.augment import augmented
from edgeopt.training.examples import Examples, indices_of_step
from edgeopt.training.memory_format import lay_channels_first, lay_channels_last
from edgeopt.training.network import has_open_batch, move, set_training
from edgeopt.training.objectives import Objective
from edgeopt.training.schedules import rate_at
from edgeopt.training.sparsity import GrowingZeros
from edgeopt.worker import report

Device = Literal["cpu", "cuda", "mps"]
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Fitted:
    """What training did.

    Attributes:
        steps: performed, those before a resumed checkpoint included.
        resumed: steps that a checkpoint held.
        loss: mean over the last tenth of the steps of this call.
        best: highest metric met during training; None where it was not evaluated.
        stopped: whether the metric no longer improved before all steps were done.
        seconds: of this call.
    """

    steps: int
    resumed: int
    loss: float
    best: float | None
    stopped: bool
    seconds: float


@dataclass
class _State:
    done: int = 0
    best: float | None = None
    waited: int = 0
    stopped: bool = False
    kept: dict[str, torch.Tensor] | None = None
    losses: list[float] = field(default_factory=list)


def fit(
    objective: Objective,
    examples: Examples,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    device: Device = "cpu",
    layout: str = "NCHW",
    checkpoint: Path | None = None,
    identity: str = "",
    evaluate: Callable[[], float] | None = None,
    fabric: Fabric | None = None,
) -> Fitted:
    """Train `objective.student` in place; it ends on the CPU in evaluation mode.

    Args:
        objective: gives the loss of a batch.
        examples: to train on.
        settings: how.
        seed: of the order of samples, augmentation and dropout.
        device: that computes.
        layout: of images.
        checkpoint: file to write every `checkpoint_every` steps and to go on from.
        identity: what the run depends on beside settings, samples and starting weights; a checkpoint of another is
            refused.
        evaluate: metric of `objective.student` as it is now, higher is better; called where `evaluate_every` says.
        fabric: of this process, where several processes train together; each calls this function alike.

    Raises:
        ConversionError: training diverged.
        UsageError: no such device, or a checkpoint that belongs to another run.
    """
    started = time.monotonic()
    if settings.patience is not None and (settings.evaluate_every is None or evaluate is None):
        raise UsageError("patience needs evaluate_every and evaluation data with labels")
    fabric = fabric or on_devices(device, 1, settings)
    run = _Run(objective, examples, settings, seed, fabric, layout, identity, evaluate)
    if checkpoint is not None:
        run.resume(checkpoint)
    resumed = run.state.done
    run.train(checkpoint, started)
    return run.finish(resumed, started)


def on_devices(device: Device, count: int, settings: TrainingSettings, nodes: int = 1) -> Fabric:
    """Return the Fabric that trains on so many devices; with more than one, in as many processes, each calls `launch`.

    Args:
        device: that computes.
        count: how many of each machine.
        settings: whose precision is taken.
        nodes: machines.

    Raises:
        UsageError: there are not so many devices here.
    """
    _require(device, count)
    strategy: Any = "auto" if count * nodes == 1 else DDPStrategy(find_unused_parameters=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fabric's advice on its environment
        precision: Any = PRECISIONS[settings.amp]
        return Fabric(accelerator=device, devices=count, num_nodes=nodes, strategy=strategy, precision=precision)


class _Run:
    def __init__(
        self,
        objective: Objective,
        examples: Examples,
        settings: TrainingSettings,
        seed: int,
        fabric: Fabric,
        layout: str,
        identity: str,
        evaluate: Callable[[], float] | None,
    ) -> None:
        if len(examples) == 0:
            raise UsageError("training needs samples: the data gives none")
        if min(settings.batch_size, len(examples)) < fabric.world_size:
            raise UsageError(f"{len(examples)} samples cannot be shared by {fabric.world_size} devices")
        if not has_open_batch(objective.student):
            raise UsageError("the model's graph holds its number of samples, so that it cannot be trained on batches")
        self.objective, self.examples, self.settings = objective, examples, settings
        self.seed, self.layout, self.evaluate = seed, layout, evaluate
        for parameter in objective.student.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # a teacher of an earlier stage was frozen
        self.total = settings.total_steps(len(examples))
        self.state = _State()
        self.fabric = fabric
        shared = f"{identity}|{fabric.world_size} devices" if fabric.world_size > 1 else identity
        self.identity = _identity(objective, examples, settings, seed, shared)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's advice on its environment
            lay_channels_last(objective.networks(), examples.batch(np.arange(min(2, len(examples))))[0])
            move(objective.student, self.fabric.device)
            optimizer = _optimizer(objective, settings)
            self.wrapped, self.optimizer = self.fabric.setup(objective, optimizer)
        objective.place(self.fabric.device)
        self.zeros = _zeros(objective) if settings.keep_zeros else []
        self.growing = None
        if settings.sparsity is not None:
            self.growing = GrowingZeros(objective.student, settings.sparsity, self.total)
        self.average = copy.deepcopy(objective.student.state_dict()) if settings.ema else None

    def train(self, checkpoint: Path | None, started: float) -> None:
        first = self.state.done
        settings = self.settings
        while self.state.done < self.total and not self.state.stopped:
            self._step(self.state.done)
            self.state.done += 1
            done = self.state.done
            if settings.evaluate_every and done % settings.evaluate_every == 0 and self.evaluate is not None:
                self._judge()
            first_of_all = self.fabric.is_global_zero
            due = done % settings.checkpoint_every == 0 or done == self.total
            if checkpoint is not None and first_of_all and due:
                self._save(checkpoint)
            if first_of_all and (done % 10 == 0 or done == self.total):
                left = (time.monotonic() - started) / (done - first) * (self.total - done)
                told = f"training {done}/{self.total}, loss {self.state.losses[-1]:.4g}, about {left:.0f} s left"
                if self.state.best is not None:
                    told += f", best {self.state.best:.4f}"
                report(told)

    def finish(self, resumed: int, started: float) -> Fitted:
        student, state = self.objective.student, self.state
        if _keeps_best(self.settings) and state.kept is not None:
            student.load_state_dict(state.kept)
        elif self.average is not None:
            student.load_state_dict(self.average)
        if self.fabric.world_size > 1:  # batch norm's statistics are each process's own
            student.load_state_dict(self.fabric.broadcast(student.state_dict()))
        if self.growing is not None:
            self.growing.set_zeros()
        move(student, torch.device("cpu"))
        lay_channels_first(student)
        set_training(student, False)
        recent = state.losses[-max(1, len(state.losses) // 10) :]
        loss = sum(recent) / len(recent) if recent else float("nan")
        return Fitted(state.done, resumed, loss, state.best, state.stopped, round(time.monotonic() - started, 2))

    def resume(self, path: Path) -> None:
        """Load a checkpoint that the first process finds; the others may be on machines that have none.

        Raises:
            UsageError: it is damaged, or made by a run with other settings, data or weights.
        """
        found = self._found(path) if self.fabric.is_global_zero else None
        if self.fabric.world_size > 1:
            found = self.fabric.broadcast(found)
        if isinstance(found, str):
            raise UsageError(found)
        if found is None:
            return
        saved = _on(self.fabric.device, found)
        self.objective.load_state_dict(saved["objective"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.average = saved["average"]
        if self.growing is not None:
            self.growing.load(saved["growing"])
        state = {name: saved[name] for name in ("done", "best", "waited", "stopped", "kept", "losses")}
        self.state = _State(**state)

    def _found(self, path: Path) -> dict[str, Any] | str | None:
        """Return what a checkpoint holds, nothing where there is none, or what is wrong with it."""
        if not path.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            known = saved["identity"] == self.identity
        except Exception:  # noqa: BLE001 - torch raises many kinds for a damaged file
            return f"{path}: not a checkpoint of training; remove it to start anew"
        if not known:
            return f"{path}: a checkpoint of other settings, data or weights; remove it to start anew"
        return saved

    def _step(self, step: int) -> None:
        settings, fabric = self.settings, self.fabric
        draw = (self.seed * 1_000_003 + step) * fabric.world_size + fabric.global_rank
        torch.manual_seed(draw)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(step, self.total, settings)
        indices = indices_of_step(step, len(self.examples), settings.batch_size, self.seed)
        share = len(indices) // fabric.world_size
        inputs, labels = self.examples.batch(indices[fabric.global_rank * share :][:share])
        batch = augmented(inputs, labels, settings, self.layout, draw)
        set_training(self.objective.student, True)
        self.optimizer.zero_grad()
        loss = self.wrapped(batch.to(fabric.device))
        mean: Any = fabric.all_reduce(loss.detach()) if fabric.world_size > 1 else loss.detach()
        if not bool(torch.isfinite(mean)):
            raise ConversionError(f"training diverged at step {step + 1}: lower learning_rate")
        fabric.backward(loss)
        if self.growing is not None:
            self.growing.before_update()
        if settings.clip_norm is not None:
            fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, zero in self.zeros:
                parameter.masked_fill_(zero, 0.0)
        if self.growing is not None:
            self.growing.after_update(step)
        self.state.losses.append(float(mean))
        if self.average is not None:
            _follow(self.average, self.objective.student.state_dict(), settings.ema, step)

    def _judge(self) -> None:
        assert self.evaluate is not None
        student = self.objective.student
        own = copy.deepcopy(student.state_dict()) if self.average is not None else None
        if self.average is not None:
            student.load_state_dict(self.average)
            if self.growing is not None:
                self.growing.set_zeros()
        set_training(student, False)
        value = self.fabric.broadcast(self.evaluate())
        state = self.state
        if state.best is None or value > state.best:
            state.best, state.waited = value, 0
            if _keeps_best(self.settings):
                state.kept = copy.deepcopy(student.state_dict())
        else:
            state.waited += 1
        state.stopped = self.settings.patience is not None and state.waited >= self.settings.patience
        if own is not None:
            student.load_state_dict(own)

    def _save(self, path: Path) -> None:
        saved = {
            "identity": self.identity,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": self.average,
            "growing": None if self.growing is None else self.growing.state(),
            **vars(self.state),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        torch.save(saved, temporary)
        temporary.replace(path)


def _on(device: torch.device, value: Any) -> Any:
    """Return a checkpoint with its tensors on a device."""
    if isinstance(value, dict):
        return {name: _on(device, part) for name, part in value.items()}
    if isinstance(value, list):
        return [_on(device, part) for part in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _keeps_best(settings: TrainingSettings) -> bool:
    """Tell whether the best weights met are the result, rather than the last."""
    return settings.patience is not None


def _zeros(objective: Objective) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Return the weights that hold zeros, each with where they are."""
    found = [(p, p.detach() == 0) for p in objective.student.parameters() if p.ndim > 1]
    return [(p, zero) for p, zero in found if bool(zero.any())]


def _optimizer(objective: Objective, settings: TrainingSettings) -> torch.optim.Optimizer:
    trained = [p for p in objective.parameters() if p.requires_grad]
    wide, thin = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": wide, "weight_decay": settings.weight_decay},
        {"params": thin, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, settings.learning_rate)


def _follow(average: dict[str, torch.Tensor], now: dict[str, torch.Tensor], decay: float, step: int) -> None:
    """Move averaged weights towards the present ones, faster in the first steps."""
    kept = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in average.items():
            if value.is_floating_point():
                value.lerp_(now[name], 1 - kept)
            else:
                value.copy_(now[name])


def _identity(objective: Objective, examples: Examples, settings: TrainingSettings, seed: int, added: str) -> str:
    digest = hashlib.sha256(f"{added}|{settings!r}|{seed}|{len(examples)}|{type(objective).__name__}".encode())
    digest.update(examples.labels.tobytes())
    for name, value in objective.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require(device: Device, count: int) -> None:
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device]:
        found = ", ".join(name for name, here in there.items() if here)
        raise UsageError(f"--device {device}: PyTorch finds no such device here; there is {found}")
    if device == "cuda" and count > torch.cuda.device_count():
        raise UsageError(f"--devices {count}: PyTorch finds {torch.cuda.device_count()} here")
    if device == "mps" and count > 1:
        raise UsageError("--devices: there is one mps device at most")
