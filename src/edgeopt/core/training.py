"""How a network is trained: what fine-tuning, distillation and training with quantization share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeopt.core.pruning import GradualSparsity
from edgeopt.core.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Nodes:
    """Machines that train one network together, by torchrun's names.

    Attributes:
        count: how many.
        rank: number of this one, from 0.
        rendezvous: HOST:PORT of number 0.
    """

    count: int = 1
    rank: int = 0
    rendezvous: str | None = None


class TrainingSettings(Settings):
    """How a network is trained.

    Attributes:
        epochs: passes over the training data; fractions are allowed.
        steps: of the optimizer; replaces `epochs` where given.
        batch_size: samples per step.
        optimizer: AdamW, or SGD with Nesterov momentum 0.9.
        learning_rate: the highest of the schedule.
        weight_decay: of weights; biases and norms are not decayed.
        schedule: how the learning rate goes: along a cosine to zero, up and down again (one-cycle), or not at all.
        warm_up: share of the steps in which the rate rises to its highest.
        clip_norm: largest norm of all gradients together; None does not clip.
        label_smoothing: share of a label that is spread over all classes.
        mixup: alpha of the beta distribution that pairs of inputs are mixed by; 0 mixes nothing.
        flip: mirror images at random.
        shift: pixels by which images move at random.
        cutout: side in pixels of a square that hides part of each image at random; 0 hides nothing.
        ema: decay of the running average of the weights, which is then the result; 0 takes the weights themselves.
        amp: precision of matrix products and convolutions while training.
        evaluate_every: steps between two evaluations during training; None evaluates at the end only.
        patience: evaluations without improvement after which training ends, the best weights kept; needs
            `evaluate_every`. The choice is made on the evaluation data, which are then no independent test.
        keep_zeros: weights that are exactly zero at the start stay zero, as sparse ones must.
        sparsity: zeros that grow in number meanwhile.
        checkpoint_every: steps between two checkpoints.
    """

    epochs: Annotated[float, Field(gt=0)] = 10.0
    steps: Count | None = None
    batch_size: Count = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    warm_up: Share = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    flip: bool = False
    shift: Annotated[int, Field(ge=0)] = 0
    cutout: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    amp: Literal["fp32", "bf16", "fp16"] = "fp32"
    evaluate_every: Count | None = None
    patience: Count | None = None
    keep_zeros: bool = False
    sparsity: GradualSparsity | None = None
    checkpoint_every: Count = 100

    @model_validator(mode="after")
    def _sparse(self) -> TrainingSettings:
        if self.sparsity is not None and self.patience is not None:
            raise ValueError("patience would keep weights from before all zeros are there: leave it out with sparsity")
        if self.sparsity is not None and self.sparsity.importance == "movement" and self.amp == "fp16":
            raise ValueError("movement needs gradients in one scale, which fp16 changes: set amp to bf16 or fp32")
        return self

    def total_steps(self, samples: int) -> int:
        """Return the optimizer's steps for so many training samples; at least one."""
        per_epoch = max(1, samples // min(self.batch_size, samples))
        return self.steps or max(1, round(self.epochs * per_epoch))


class FinetuneOptions(TrainingSettings):
    """Trains on labels alone."""


class DistillOptions(TrainingSettings):
    """Trains on another model's answers.

    Attributes:
        teacher: a model as `edgeopt convert` takes it; the recipe's own model, as it came, where None.
        temperature: that softens the classes of teacher and student.
        label_share: of the loss that comes from labels, where there are any.
        feature_weight: of the distance between values inside teacher and student; 0 leaves them alone.
        features: names of the layers whose outputs are compared; four spread over the depth where none are named.
        relation_weight: of the distance between the relations of tokens in the last attention (transformers).
    """

    teacher: str | None = None
    temperature: Annotated[float, Field(gt=0)] = 4.0
    label_share: Share = 0.3
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    features: tuple[str, ...] = ()
    relation_weight: Annotated[float, Field(ge=0)] = 0.0


class CutDepthOptions(Settings):
    """Leaves out whole blocks of a stack of equal ones, as a transformer's, or any block that changes no shape.

    Attributes:
        blocks: how many stay, spread evenly; the first and the last stay.
        keep: which stay, by their numbers from 0; replaces `blocks`.
        drop: which go, by their modules' names; replaces both. What such a block is given must have its result's shape.
    """

    blocks: Count | None = None
    keep: tuple[Annotated[int, Field(ge=0)], ...] = ()
    drop: tuple[str, ...] = ()
