"""Random tensors: the distribution is right, the numbers are not those of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeopt.mil.ops.spatial import Ints


def _generator(seed: int) -> torch.Generator:
    """Seeded generator; -1, which asks for a fresh sequence, gives the same one every time here."""
    return torch.Generator().manual_seed(seed & 0x7FFFFFFF)


def random_bernoulli(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """Draw ones with probability `prob`."""
    return torch.bernoulli(torch.full(shape, prob), generator=_generator(seed))


def random_normal(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    """Draw from a normal distribution."""
    return torch.randn(shape, generator=_generator(seed)) * stddev + mean


def random_uniform(shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    """Draw uniformly from [low, high)."""
    return torch.rand(shape, generator=_generator(seed)) * (high - low) + low


def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """Draw `size` categories with replacement from each row of logits or probabilities."""
    weights = torch.softmax(x, -1) if mode == "logits" else x
    drawn = torch.multinomial(weights.reshape(-1, x.shape[-1]), size, True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size)


OPS: dict[str, Callable[..., Any]] = {
    "random_bernoulli": random_bernoulli,
    "random_categorical": random_categorical,
    "random_normal": random_normal,
    "random_uniform": random_uniform,
}
