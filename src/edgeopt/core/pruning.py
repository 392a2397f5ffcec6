"""How a network is pruned: whole channels, or single weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeopt.core.settings import Settings

Budget = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class PruneOptions(Settings):
    """Removes whole channels and attention heads, with all that depends on them.

    Attributes:
        macs: budget of multiply-accumulates: a share of the given model's up to 1, else a count.
        params: the same of parameters.
        size: the same of bytes in float32.
        latency: budget of the time that a file made of the model takes on this host, a share of the given model's.
        ratio: share of channels to remove where there is no budget.
        layers: share to remove of a layer's output channels, by its name; replaces what the rest would choose.
        importance: what a channel is worth: the size of its weights; the change of the loss without it to first order
            (Taylor); or the mean size of its activations.
        scope: compare channels of all layers with each other, or remove the same share everywhere.
        round_to: channel counts stay multiples of this, as kernels like them; 1 does not care.
        max_ratio: most that a layer may lose.
        heads: prune whole attention heads too.
        keep: layers whose output channels stay.
        samples: of the training data, for Taylor and activation.
        latency_format: of the file that is timed, in float32.
        latency_tries: files to make and time at most, before the last is timed again.
    """

    macs: Budget | None = None
    params: Budget | None = None
    size: Budget | None = None
    latency: Annotated[float, Field(gt=0, lt=1)] | None = None
    ratio: Ratio | None = None
    layers: dict[str, Ratio] = Field(default_factory=dict)
    importance: Literal["magnitude", "taylor", "activation"] = "magnitude"
    scope: Literal["global", "per-layer"] = "global"
    round_to: Annotated[int, Field(ge=1, le=64)] = 8
    max_ratio: Ratio = 0.8
    heads: bool = True
    keep: tuple[str, ...] = ()
    samples: Annotated[int, Field(ge=1)] = 256
    latency_format: Literal["onnx", "litert", "executorch"] = "onnx"
    latency_tries: Annotated[int, Field(ge=2, le=32)] = 8

    @model_validator(mode="after")
    def _goal(self) -> PruneOptions:
        budgets = [n for n in ("macs", "params", "size", "latency") if getattr(self, n) is not None]
        if budgets and self.ratio is not None:
            raise ValueError(f"give {budgets[0]} or ratio, not both")
        if not budgets and self.ratio is None and not self.layers:
            raise ValueError("give a budget (macs, params, size, latency), ratio or layers")
        return self

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that were given and can be counted; latency is measured."""
        return {n: v for n in ("macs", "params", "size") if (v := getattr(self, n)) is not None}


class SparsifyOptions(Settings):
    """Sets single weights to zero by their magnitude; shapes stay as they are.

    Attributes:
        ratio: share of zeros over all layers.
        pattern: `2:4` leaves the two largest of every four weights along the input channels; `1:4` one.
        keep: layers that stay dense.
    """

    ratio: Ratio | None = None
    pattern: Literal["1:2", "1:4", "2:4", "4:8"] | None = None
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one(self) -> SparsifyOptions:
        if (self.ratio is None) == (self.pattern is None):
            raise ValueError("give either ratio or pattern")
        return self


class GradualSparsity(SparsifyOptions):
    """Sets single weights to zero while the network is trained, more and more of them along a cubic.

    Attributes:
        ratio: share of zeros over all layers in the end.
        pattern: `2:4` leaves two of every four weights along the input channels in the end; `1:4` one.
        keep: layers that stay dense.
        importance: what a weight is worth: its magnitude; or its movement, which is how far training pushes it away
            from zero (for fine-tuning of pretrained models to many zeros).
        begin: share of the steps before the first zeros.
        end: share of the steps after which all are there, and stay.
        every: steps between two choices.
    """

    importance: Literal["magnitude", "movement"] = "magnitude"
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    every: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _span(self) -> GradualSparsity:
        if self.begin >= self.end:
            raise ValueError(f"begin ({self.begin:g}) must come before end ({self.end:g})")
        return self

    @property
    def kept_weights(self) -> int | None:
        """How many of a group of the pattern stay."""
        return None if self.pattern is None else int(self.pattern.split(":")[0])

    @property
    def every_weights(self) -> int | None:
        """How many there are in a group of the pattern."""
        return None if self.pattern is None else int(self.pattern.split(":")[1])
