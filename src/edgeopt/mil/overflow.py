"""Where half precision would overflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from edgeopt.mil.executor import Evaluator
from edgeopt.mil.package import Program

HALF_MAX = 65504.0


@dataclass(frozen=True)
class Overflow:
    """The first value that half precision cannot hold.

    Attributes:
        operator: type of the operator that made it.
        tensor: its name.
        largest: its largest magnitude in single precision.
        elements: how many of its elements do not fit.
    """

    operator: str
    tensor: str
    largest: float
    elements: int


def first_overflow(program: Program, inputs: Mapping[str, NDArray[Any]]) -> Overflow | None:
    """Return the first tensor, in order of execution, with a finite value beyond ±65504; None where all fit.

    The program is computed in single precision, so that what follows the first overflow does not hide it. Values that
    are infinite on purpose, such as masks, do not count.

    Raises:
        ArtifactError: the inputs do not fit the program.
    """
    found: list[Overflow] = []

    def look(kind: str, name: str, value: torch.Tensor) -> None:
        if found or not value.is_floating_point() or not value.numel():
            return
        beyond = torch.isfinite(value) & (value.abs() > HALF_MAX)
        if bool(beyond.any()):
            found.append(Overflow(kind, name, float(value[beyond].abs().max()), int(beyond.sum())))

    Evaluator(program, "fp32")(inputs, hook=look)
    return found[0] if found else None
