"""Scales of eleven significant bits, as float16 has: what every format then stores without rounding it again.

Core ML stores scales in float16, the others in float32. Where one network's scales differ in the last bit, a value
between two integers goes up in one format and down in the other; each later layer adds to the difference, until the
formats' errors are as good as independent. A product of two such scales is exact in float32 too.
"""

from __future__ import annotations

import math

import torch

BITS = 11


def nearest(scale: torch.Tensor) -> torch.Tensor:
    """Return each scale rounded to eleven significant bits."""
    share, exponent = torch.frexp(scale.double())
    return torch.ldexp(torch.round(share * 2**BITS), exponent - BITS).to(scale.dtype)


def below(scale: float) -> float:
    """Return the largest scale of eleven significant bits that is not larger.

    A range that ends at a clamp must not reach past it: ONNX Runtime then leaves the clamp in the graph.
    """
    share, exponent = math.frexp(scale)
    return math.ldexp(math.floor(share * 2**BITS), exponent - BITS)
