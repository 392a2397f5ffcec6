"""Scales of eleven significant bits, as float16 has: what every format then stores without rounding it again.

Core ML stores scales in float16, the others in float32. Where one network's scales differ in the last bit, a value
between two integers goes up in one format and down in the other; each later layer adds to the difference, until the
formats' errors are as good as independent. A product of two such scales is exact in float32 too.

Below 2^-14 float16 has numbers every 2^-24 only, and scales have fewer bits. Below 2^-18 that would change them by a
percent and more, so they keep eleven, and Core ML's differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

BITS = 11
NORMAL = -13
"""Binary exponent, as `frexp` has it, from which on float16 has all its bits."""
SUBNORMAL = -17
"""From which on it has enough of them."""


def nearest(scale: torch.Tensor) -> torch.Tensor:
    """Return each scale rounded to eleven significant bits, or to those that float16 has of it."""
    return _to_bits(scale.double(), torch.round).to(scale.dtype)


def below(scale: float) -> float:
    """Return the largest scale of so many bits that is not larger.

    A range that ends at a clamp must not reach past it: ONNX Runtime then leaves the clamp in the graph.
    """
    return float(_to_bits(torch.tensor(scale, dtype=torch.float64), torch.floor))


def _to_bits(scale: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    share, exponent = torch.frexp(scale)
    bits = BITS + torch.where(exponent < SUBNORMAL, 0, (exponent - NORMAL).clamp(max=0))
    return torch.ldexp(rounded(torch.ldexp(share, bits)), exponent - bits)
