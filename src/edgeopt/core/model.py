"""A model on its way through edgeopt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from edgeopt.core.card import ModelCard

DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, dtype and memory order of one input or output.

    Attributes:
        name: as the artifact declares it.
        shape: a dimension that varies is -1.
        dtype: a numpy name (`float32`, `int8`, ...).
        layout: `NCHW`, `NHWC` or `` where neither applies.
        scale, zero_point: of a quantized tensor: real = scale * (stored - zero_point).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""
    scale: float | None = None
    zero_point: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON types, unset fields left out."""
        record: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        if self.layout:
            record["layout"] = self.layout
        if self.scale is not None:
            record["scale"], record["zero_point"] = self.scale, self.zero_point
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TensorSpec:
        """Inverse of `to_json`."""
        return cls(**{**record, "shape": tuple(record["shape"])})


@dataclass(frozen=True)
class Model:
    """A PyTorch module in eval mode with what is needed to feed, judge and name it.

    Attributes:
        module: takes the inputs in their order; returns a tensor, a tuple or a dict of tensors.
        inputs: fixed shapes, batch included.
        card: task, preprocessing, labels and data; defaults where the source has none.
        name: short, fit for file names.
        source: what the user named.
        sha256: of the source file or of the weights.
    """

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    card: ModelCard
    name: str
    source: str
    sha256: str
    notes: tuple[str, ...] = field(default=())


def layout_of(shape: tuple[int, ...]) -> str:
    """Guess the memory order of an image tensor from its shape; empty where it cannot be told."""
    if len(shape) != 4:
        return ""
    channels_first, channels_last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if channels_first == channels_last:
        return ""
    return "NCHW" if channels_first else "NHWC"
