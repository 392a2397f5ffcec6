"""Layers that read and write integers, in the arithmetic of integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its usual name
from torch.nn import functional

from edgeopt.mil import Evaluator

f32 = np.float32
GENERATOR = np.random.default_rng(0)
SOURCE, RESULT = (f32(0.031), np.int8(-7)), (f32(0.22), np.int8(5))
IMAGE = GENERATOR.integers(-128, 128, (1, 6, 9, 9), dtype=np.int8)
ROWS = GENERATOR.integers(-128, 128, (4, 6), dtype=np.int8)
BIAS = GENERATOR.normal(size=8).astype(f32)
SCALES = GENERATOR.uniform(0.001, 0.01, 8).astype(f32)


def weights(*shape: int) -> np.ndarray:
    return GENERATOR.integers(-127, 128, shape, dtype=np.int8)


def affine(values: np.ndarray, axis: int = 0) -> Any:
    zero = np.zeros(8, np.int8)
    return mb.constexpr_affine_dequantize(quantized_data=values, zero_point=zero, scale=SCALES, axis=np.int32(axis))


def blockwise(values: np.ndarray) -> Any:
    return mb.constexpr_blockwise_shift_scale(data=values, scale=SCALES.reshape(-1, *[1] * (values.ndim - 1)))


CONV, GROUPED, UP, LINEAR = weights(8, 6, 3, 3), weights(8, 3, 3, 3), weights(6, 8, 2, 2), weights(8, 6)
BY_TORCH: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "conv": lambda x, b: functional.conv2d(x, torch.from_numpy(CONV).double(), b, 2, 1),
    "grouped": lambda x, b: functional.conv2d(x, torch.from_numpy(GROUPED).double(), b, groups=2),
    "up": lambda x, b: functional.conv_transpose2d(x, torch.from_numpy(UP).double(), b, 2),
    "linear": lambda x, b: functional.linear(x, torch.from_numpy(LINEAR).double(), b),
}
LAYERS: dict[str, tuple[Callable[[Any], Any], np.ndarray, Any]] = {
    "conv": (
        lambda x: mb.conv(x=x, weight=affine(CONV), bias=BIAS, strides=[2, 2], pad_type="custom", pad=[1] * 4),
        IMAGE,
        ct.target.iOS17,
    ),
    "grouped": (lambda x: mb.conv(x=x, weight=blockwise(GROUPED), bias=BIAS, groups=2), IMAGE, ct.target.iOS18),
    "up": (lambda x: mb.conv_transpose(x=x, weight=affine(UP, 1), bias=BIAS, strides=[2, 2]), IMAGE, ct.target.iOS17),
    "linear": (lambda x: mb.linear(x=x, weight=affine(LINEAR), bias=BIAS), ROWS, ct.target.iOS17),
}
KINDS = {"grouped": "conv", "up": "conv_transpose"}
CLAMPS: dict[str, tuple[Callable[[Any], Any], float, float]] = {
    "none": (lambda x: x, -np.inf, np.inf),
    "relu": (lambda x: mb.relu(x=x), 0.0, np.inf),
    "relu6": (lambda x: mb.relu6(x=x), 0.0, 6.0),
    "clip": (lambda x: mb.clip(x=x, alpha=f32(-1.5), beta=f32(4)), -1.5, 4.0),
}


def program_of(make_program: Any, layer: str, clamp: str, *, twice: bool = False) -> Any:
    build, values, target = LAYERS[layer]

    def whole(q: Any) -> Any:
        made = build(mb.dequantize(input=q, scale=SOURCE[0], zero_point=SOURCE[1]))
        stored = mb.quantize(
            input=CLAMPS[clamp][0](made), scale=RESULT[0], zero_point=RESULT[1], output_dtype="int8", name="stored"
        )
        return (stored, made) if twice else stored

    return make_program(whole, {"q": values}, target)


@pytest.mark.parametrize("clamp", list(CLAMPS))
@pytest.mark.parametrize("layer", list(LAYERS))
def test_a_layer_adds_up_integers_and_scales_them_once(make_program: Any, layer: str, clamp: str) -> None:
    evaluator = Evaluator(program_of(make_program, layer, clamp), "int8")
    assert [kind for kind, _ in evaluator.steps if kind != "dequantize"] == [KINDS.get(layer, layer)]
    values = LAYERS[layer][1]
    steps = np.rint(BIAS.astype(np.float64) / (SOURCE[0] * SCALES))
    sums = BY_TORCH[layer](torch.from_numpy(values).double() - int(SOURCE[1]), torch.from_numpy(steps)).numpy()
    factor = (SOURCE[0] * SCALES / RESULT[0]).reshape(-1, *[1] * (sums.ndim - 2))
    low, high = (np.rint(np.float64(bound) / RESULT[0]) for bound in CLAMPS[clamp][1:])
    expected = np.clip(np.clip(np.rint(sums.astype(f32) * factor), low, high) + RESULT[1], -128, 127)
    (actual,) = evaluator({"q": values}).values()
    np.testing.assert_array_equal(actual, expected.astype(np.int8))
    (literal,) = Evaluator(program_of(make_program, layer, clamp), "fp32")({"q": values}).values()
    assert np.abs(literal.astype(int) - actual).max() <= 1
    assert len(np.unique(actual)) > 5


def test_a_layer_whose_floats_are_read_elsewhere_stays_in_float(make_program: Any) -> None:
    evaluator = Evaluator(program_of(make_program, "linear", "relu", twice=True), "int8")
    assert [kind for kind, _ in evaluator.steps] == ["dequantize", "linear", "relu", "quantize"]


def test_what_lies_between_integers_is_not_rounded_to_half_precision(make_program: Any) -> None:
    scale = np.float16(0.1)
    other = np.float16(0.0731)

    def build(a: Any, b: Any) -> Any:
        total = mb.add(x=mb.dequantize(input=a, scale=scale), y=mb.dequantize(input=b, scale=other))
        return mb.quantize(input=total, scale=np.float16(0.1531), output_dtype="int8")

    a, b = (GENERATOR.integers(-128, 128, (1, 4000), dtype=np.int8) for _ in range(2))
    program = make_program(build, {"a": a, "b": b})
    (whole,) = Evaluator(program, "int8")({"a": a, "b": b}).values()
    (half,) = Evaluator(program, "fp16")({"a": a, "b": b}).values()
    exact = np.rint((a * np.float64(scale) + b * np.float64(other)) / np.float64(np.float16(0.1531)))
    np.testing.assert_array_equal(whole, np.clip(exact, -128, 127))
    assert (half != whole).any()
