"""The integers that a quantized ONNX value is stored as, and the real numbers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """Evenly spaced numbers: real = scale × (stored − zero_point).

    Attributes:
        scale, zero_point: of one element, or of one per index of `axis`.
        dtype: of the integers.
        axis: along which scales differ.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    dtype: torch.dtype
    axis: int = 0

    @property
    def uniform(self) -> bool:
        """Whether one scale holds for all elements."""
        return self.scale.numel() == 1

    @property
    def integer_range(self) -> tuple[int, int]:
        """Return the smallest and the largest integer."""
        limits = torch.iinfo(self.dtype)
        return int(limits.min), int(limits.max)

    @property
    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest real number; of all channels where scales differ."""
        low, high = self.integer_range
        scale, zero = self.scale.double().reshape(-1), self.zero_point.double().reshape(-1)
        return float(((low - zero) * scale).min()), float(((high - zero) * scale).max())

    def shaped(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point so that they broadcast against a value of `rank` dimensions."""
        if self.uniform:
            return self.scale.reshape(()), self.zero_point.reshape(())
        shape = [-1 if i == self.axis % rank else 1 for i in range(rank)]
        return self.scale.reshape(shape), self.zero_point.reshape(shape)
