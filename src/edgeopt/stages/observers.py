"""torchao observers around the project's range estimators: what `prepare_pt2e` puts into a graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torchao.quantization.pt2e.observer import ObserverBase

from edgeopt.core.quantization import Estimator
from edgeopt.stages import half_scales
from edgeopt.stages.histogram import LARGEST, Histogram
from edgeopt.stages.ranges import estimate

SMALLEST_SCALE = 2.0**-24


class Extremes:
    """Mean and spread of the smallest and the largest value of each sample.

    Args:
        headroom: standard deviations that a range shall reach beyond the mean.
    """

    def __init__(self, headroom: float) -> None:
        self.headroom = headroom
        self.count = 0
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.squares = torch.zeros(2, dtype=torch.float64)

    def update(self, x: torch.Tensor) -> None:
        """Take in samples, axis 0; what the histogram leaves out counts as 0."""
        if x.numel() == 0:
            return
        rows = x.detach().reshape(len(x), -1)
        rows = torch.where(rows.abs() < LARGEST, rows, 0.0)
        ends = torch.stack((rows.amin(1), rows.amax(1)), 1).double()
        self.count += len(ends)
        self.sums += ends.sum(0)
        self.squares += ends.square().sum(0)

    def widened(self, low: float, high: float, lower: float, upper: float) -> tuple[float, float]:
        """Return a range that reaches as far as asked, inside the bounds; an end at 0 stays there."""
        if self.count < 2:
            return low, high
        mean = self.sums / self.count
        spread = self.headroom * (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        reaching = max(lower, float(mean[0] - spread[0])), min(upper, float(mean[1] + spread[1]))
        return min(low, reaching[0]) if low < 0 else low, max(high, reaching[1]) if high > 0 else high


class RangeObserver(ObserverBase):  # type: ignore[misc]  # torchao ships no types
    """Observes one activation and gives its scale and zero point.

    Memory is bounded by that of `Histogram`, 64 KiB, however many samples are seen.

    Args:
        dtype, qscheme, quant_min, quant_max: of the integers; symmetric schemes have the zero point 0.
        estimator: of the range.
        lower, upper: values outside make no difference to what reads this tensor, so the range stays inside.
        headroom: how many standard deviations of the samples' extremes the range reaches beyond their mean, at least;
            0 leaves it where the estimator ends it. Only for the estimator `mse`, the others promise an end.

    Attributes:
        fixed_scale: of 8-bit integers, in place of the estimated one.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        quant_min: int,
        quant_max: int,
        estimator: Estimator = "mse",
        lower: float = -math.inf,
        upper: float = math.inf,
        headroom: float = 0.0,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.qscheme = qscheme
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.estimator = estimator
        self.extremes = Extremes(headroom) if headroom and estimator == "mse" else None
        self.lower = lower
        self.upper = upper
        self.histogram = Histogram()
        self.fixed_scale: float | None = None

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is fixed."""
        return bool(self.qscheme == torch.per_tensor_symmetric)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take in the values and pass them on."""
        self.histogram.update(x, self.lower, self.upper)
        if self.extremes is not None:
            self.extremes.update(x)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point, each of shape (1,); 1 and 0 where nothing but zeros was seen."""
        low, high = estimate(self.histogram, self.estimator, self.quant_max - self.quant_min + 1, self.symmetric)
        if self.extremes is not None:
            low, high = self.extremes.widened(low, high, self.lower, self.upper)
            low, high = (-max(-low, high), max(-low, high)) if self.symmetric else (low, high)
        if low == high:
            scale, zero_point = 1.0, 0
        elif self.symmetric:
            scale, zero_point = max(high / self.quant_max, SMALLEST_SCALE), 0
        else:
            scale = max((high - low) / (self.quant_max - self.quant_min), SMALLEST_SCALE)
            scale = self.fixed_scale or half_scales.below(scale)
            zero_point = min(max(self.quant_min - round(low / scale), self.quant_min), self.quant_max)
        return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int64)

    def covered(self) -> tuple[float, float]:
        """Return the numbers that the smallest and the largest integer stand for."""
        scale, zero_point = (float(v) for v in self.calculate_qparams())
        low = -self.quant_max if self.symmetric else self.quant_min
        return (low - zero_point) * scale, (self.quant_max - zero_point) * scale


class PerChannelWeightObserver(ObserverBase):  # type: ignore[misc]  # torchao ships no types
    """Scales of a constant weight, one per channel: the channel's largest magnitude is the largest integer.

    A weight that lies on its grid already, with every channel's largest magnitude at 127, keeps its integers.
    The weight is looked at once; calibration does not repeat it.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        quant_min: int,
        quant_max: int,
        ch_axis: int = 0,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.qscheme = qscheme
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.ch_axis = ch_axis
        self.scale: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take in the weight and pass it on."""
        if self.scale is None:
            self.scale = self._scales(x.detach())
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scales and zero points (all 0), each of shape (channels,)."""
        assert self.scale is not None, "calibration never ran"
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)

    def _scales(self, weight: torch.Tensor) -> torch.Tensor:
        largest = weight.transpose(0, self.ch_axis).flatten(1).abs().amax(1).float()
        scale = half_scales.nearest(largest / self.quant_max)
        # A channel of zeros takes any scale; one as its neighbours' keeps the bias, whose scale follows, representable.
        usual = scale[scale > 0].median() if bool((scale > 0).any()) else torch.tensor(1.0)
        return torch.where(largest > 0, scale, usual).clamp_min(float(usual) * 2**-20)


class WeightObserver(PerChannelWeightObserver):
    """One scale for a whole constant weight."""

    def _scales(self, weight: torch.Tensor) -> torch.Tensor:
        largest = weight.abs().max().float()
        return torch.where(largest > 0, half_scales.nearest(largest / self.quant_max), torch.tensor(1.0)).reshape(1)
