"""Kernels that add in different arithmetic give the same integers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.stages import half_scales
from edgeopt.stages.exact_sums import fix_scales
from edgeopt.stages.observers import RangeObserver
from edgeopt.stages.quantize import quantize
from edgeopt.stages.settle_biases import MOST_STEPS, rounded

LEVELS = np.arange(-255, 256)  # of an operand, its zero point taken off


def observer(low: float, high: float) -> RangeObserver:
    made = RangeObserver(torch.int8, torch.per_tensor_affine, -128, 127, estimator="minmax")
    made(torch.tensor([low, high]))
    return made


def in_fixed_point(a: float, b: float, result: float) -> np.ndarray:
    """Add as XNNPACK does: 21-bit multipliers, the middle goes up."""
    ratios = np.float32(a) / np.float32(result), np.float32(b) / np.float32(result)
    shift = 20 - (math.frexp(max(ratios))[1] - 1)
    one, other = (int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios)
    return (LEVELS[:, None] * one + LEVELS[None] * other + (1 << (shift - 1))) >> shift


def in_float32(a: float, b: float, result: float) -> np.ndarray:
    """Add as ONNX Runtime does: ratios in float32, the middle goes to the even number."""
    one, other = np.float32(a) / np.float32(result), np.float32(b) / np.float32(result)
    levels = LEVELS.astype(np.float32)
    return np.rint(levels[:, None] * one + levels[None] * other).astype(np.int64)


def disagreement(scales: list[float]) -> int:
    """Count the sums that fit into 8 bits and that the two give different integers for."""
    fixed, floating = in_fixed_point(*scales), in_float32(*scales)
    fits = (np.abs(fixed) < 255) & (np.abs(floating) < 255)
    return int((fixed != floating)[fits].sum())


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-8, 2.0**6), st.floats(0.15, 1), st.floats(0.15, 1), st.floats(0.5, 1.5))
def test_fixed_point_and_float_add_alike(size, first, second, share):
    members = tuple(observer(-size * s, size * s) for s in (first, second, max(first, second) * share))
    assert fix_scales([members]) == 3
    scales = [float(m.calculate_qparams()[0]) for m in members]
    assert disagreement(scales) == 0
    for scale, s in zip(scales, (first, second, max(first, second) * share), strict=True):
        assert 0.98 * size * s / 127.5 <= scale <= size * s / 127.5
        assert float(np.float16(scale)) == scale or scale < 2.0**-14
    ratios = [Fraction(s) / Fraction(scales[2]) for s in scales[:2]]
    assert all(r.denominator % 2 for r in ratios), "a result can lie in the middle between two integers"


def test_scales_as_estimated_do_not():
    assert disagreement([0.22701963782310486, 0.2989019453525543, 0.3078211545944214]) > 0
    assert disagreement([0.5, 0.25, 1.0]) > 0


def test_sums_in_a_row_share_a_step_and_far_scales_stay():
    one, two, three, four = (observer(-s, s) for s in (1.0, 1.5, 1.7, 0.2))
    assert fix_scales([(one, two, three), (three, four, two)]) == 4
    near, far = observer(-1, 1), observer(-0.01, 0.01)
    assert fix_scales([(near, far, observer(-1, 1))]) == 0
    assert far.fixed_scale is None


@given(st.floats(1e-30, 1e30) | st.floats(2**-20, 2**-12))
def test_scales_have_eleven_bits_or_what_float16_has_of_them(scale):
    down = half_scales.below(scale)
    near = float(half_scales.nearest(torch.tensor(scale, dtype=torch.float64)))
    gap = max(scale * 2**-10, 2**-24 if scale >= 2**-18 else 0)
    assert scale - gap <= down <= scale
    assert abs(near - scale) <= gap / 2
    for found in (down, near):
        assert (math.frexp(found)[0] * 2**half_scales.BITS).is_integer()
        if 2**-18 <= scale <= 2**15:
            assert float(np.float16(found)) == found


@settings(deadline=None)
@given(st.floats(-100, 100, width=32), st.integers(1024, 2047), st.integers(1024, 2047), st.integers(-40, -22))
def test_a_bias_is_one_integer_in_float32_and_in_float16(bias, one, other, exponent):
    scale = torch.tensor([math.ldexp(one * other, exponent)], dtype=torch.float64)
    found = rounded(torch.tensor([bias]), scale)
    steps = found.double() / scale
    if abs(float(torch.round(torch.tensor(bias).half().double() / scale))) > MOST_STEPS:
        assert float(found) == pytest.approx(bias)
        return
    assert torch.round(found / scale.float()) == torch.round(steps)
    if abs(float(steps)) < MOST_STEPS and found.abs() >= 2.0**-14:
        assert torch.round(found.half().double() / scale) == torch.round(steps)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.second(x + torch.relu(self.first(x)))


def test_quantizing_returns_the_biases_that_the_graph_has():
    program = torch.export.export(Net().eval(), (torch.zeros(1, 3, 8, 8),))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    data = [{"x": np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32)} for i in range(4)]
    specs = (TensorSpec("x", (1, 3, 8, 8), "float32", "NCHW"),)
    made = quantize(program, lambda: iter(data), specs, scheme_of("static_wi8_ai8"), QuantizationOptions())
    assert set(made.biases) == {"first.bias", "second.bias"}
    kept = {name: value for name, value in made.program.state_dict.items() if name.endswith("bias")}
    for name, value in made.biases.items():
        assert torch.equal(kept[name], value)
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(value, before[name], rtol=2**-10, atol=1e-3)
        assert torch.equal(program.state_dict[name], before[name]), "the given program has changed"
