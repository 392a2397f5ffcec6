"""The classifier head: probabilities to a label and a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def classify(probabilities: Tensor, classes: tuple[Any, ...]) -> tuple[Any, Tensor]:
    """Return the label of the greatest probability and the probabilities in the order of the labels."""
    flat = probabilities.reshape(-1)
    return classes[int(flat.argmax())], flat


OPS: dict[str, Callable[..., Any]] = {"classify": classify}
