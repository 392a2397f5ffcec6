"""Layers between a `dequantize` and a `quantize`, as integer kernels compute them.

Such a kernel adds up products of integers in 32 bits and multiplies the sum by one float32 number per channel, the
scales of input and weight over the scale of the result. XNNPACK and ONNX Runtime compute so, bit for bit; Apple's
coprocessors with int8 arithmetic (A17 Pro, M4) are taken to. In real numbers the result is the same; in float32 it
differs where it lies next to the middle between two integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.mil.constexpr import decode, is_constant
from edgeopt.mil.integer_operators import computes_on_integers, is_float, operands_of
from edgeopt.mil.ops.quantize import RANGES

LAYERS = {"conv": 1, "conv_transpose": 1, "linear": -1}
"""Each with the axis of the result's channels."""
WEIGHT_AXIS = {"conv": 0, "conv_transpose": 1, "linear": 0}
BOUNDS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "relu": lambda _: (0.0, float("inf")),
    "relu6": lambda _: (0.0, 6.0),
    "clip": lambda op: (float(decode(op.inputs["alpha"])), float(decode(op.inputs["beta"]))),
}


@dataclass(frozen=True)
class IntegerLayer:
    """A layer, the clamp behind it if there is one, and the `quantize` that ends it.

    Attributes:
        layer, end: PyMIL operators: of the layer, and its `quantize`.
        inner: those in between, and the layer itself.
        source: variable of the integers that it reads.
        source_zero: their zero point.
        weight: integers, in a float type in which their sums are exact.
        bias: integers, float64, along its channels' axis, or None.
        factor: float32, from a sum to steps of the result, likewise.
        low, high: integers that the result stays between, before the zero point is added.
        zero: the result's zero point.
        dtype: of the result.
    """

    layer: Any
    end: Any
    inner: tuple[Any, ...]
    source: Any
    source_zero: int
    weight: Tensor
    bias: Tensor | None
    factor: Tensor
    low: float
    high: float
    zero: int
    dtype: torch.dtype

    def __call__(self, sums: Callable[..., Tensor], stored: Tensor) -> Tensor:
        """Return the result's integers; `sums` is the layer's operator with its other parameters."""
        total = sums(x=stored.to(self.weight.dtype) - self.source_zero, weight=self.weight, bias=None).double()
        if self.bias is not None:
            total += self.bias
        steps = torch.round(total.float() * self.factor)
        return (steps.clamp(self.low, self.high) + self.zero).to(self.dtype)


def integer_layers(block: Any) -> list[IntegerLayer]:
    """Return the layers of a PyMIL block that integer kernels can compute."""
    outputs = set(block.outputs)
    found = (_integer_layer(op, outputs) for op in block.operations if op.op_type in LAYERS)
    return [layer for layer in found if layer is not None]


def unrounded(block: Any) -> set[Any]:
    """Return the variables of a PyMIL block that no integer kernel ever makes: floats from integers to integers."""
    found: set[Any] = set()
    for op in block.operations:
        if computes_on_integers(op):
            found |= {v for v in operands_of(op) if is_float(v)} | set(op.outputs)
    return found


def _integer_layer(op: Any, outputs: set[Any]) -> IntegerLayer | None:
    source = op.inputs["x"].op
    if source is None or source.op_type != "dequantize" or (read := _scalar_scale(source)) is None:
        return None
    weight = _weight(op)
    bias = op.inputs.get("bias")
    if weight is None or (bias is not None and not is_constant(bias)):
        return None
    low, high = -np.inf, np.inf
    inner, here = [op], op
    while (following := _only_reader(here, outputs)) is not None and following.op_type in BOUNDS:
        bounds = BOUNDS[following.op_type](following)
        low, high = max(low, bounds[0]), min(high, bounds[1])
        inner.append(following)
        here = following
    if following is None or following.op_type != "quantize" or (made := _scalar_scale(following)) is None:
        return None
    integers, scales = weight
    products = np.float32(read[0]) * scales
    rank = len(op.outputs[0].shape)
    factor = _along(products / np.float32(made[0]), LAYERS[op.op_type], rank)
    smallest, largest, dtype = RANGES[str(following.inputs["output_dtype"].val)]
    steps = np.rint(np.array([low, high]) / np.float64(made[0]))
    added = None if bias is None else np.rint(decode(bias).astype(np.float64) / products)
    return IntegerLayer(
        layer=op,
        end=following,
        inner=tuple(inner),
        source=source.inputs["input"],
        source_zero=read[1],
        weight=_summable(integers, WEIGHT_AXIS[op.op_type]),
        bias=None if added is None else _along(added, LAYERS[op.op_type], rank),
        factor=factor,
        low=max(float(steps[0]), smallest - made[1]),
        high=min(float(steps[1]), largest - made[1]),
        zero=made[1],
        dtype=dtype,
    )


def _along(values: np.ndarray, axis: int, rank: int) -> Tensor:
    """Shape one value per channel, or one for all, so that it broadcasts along the channels' axis of a result."""
    return torch.from_numpy(np.atleast_1d(values)).reshape(-1, *[1] * (rank - 1 - axis % rank))


def _summable(integers: np.ndarray, axis: int) -> Tensor:
    """Return a weight in float32 where no sum can pass 2^24, up to which it holds every integer, else in float64."""
    most = np.abs(integers.astype(np.int64)).sum(axis=tuple(i for i in range(integers.ndim) if i != axis)).max()
    return torch.from_numpy(integers.astype(np.float32 if most * 255 < 2**24 else np.float64))


def _scalar_scale(op: Any) -> tuple[np.float32, int] | None:
    """Return scale and zero point of a `quantize` or `dequantize` that has one for all values."""
    given = [op.inputs.get(name) for name in ("scale", "zero_point")]
    if any(v is not None and not is_constant(v) for v in given):
        return None
    scale, zero = (None if v is None else np.asarray(decode(v)) for v in given)
    if scale is None or scale.size != 1 or (zero is not None and zero.size != 1):
        return None
    return np.float32(scale.item()), 0 if zero is None else int(zero.item())


def _weight(op: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a layer's weight as integers and their float32 scales, one or one per output channel."""
    var = op.inputs["weight"]
    axis = WEIGHT_AXIS[op.op_type]
    kind = "" if var.op is None else var.op.op_type
    if kind == "constexpr_affine_dequantize":
        integers = np.asarray(decode(var.op.inputs["quantized_data"]))
        scales = np.asarray(decode(var.op.inputs["scale"]), np.float32)
        offset = np.asarray(decode(var.op.inputs["zero_point"]))
        if scales.ndim and int(np.asarray(decode(var.op.inputs["axis"]))) % integers.ndim != axis:
            return None
    elif kind == "constexpr_blockwise_shift_scale":
        integers = np.asarray(decode(var.op.inputs["data"]))
        scales = np.asarray(decode(var.op.inputs["scale"]), np.float32)
        given = var.op.inputs.get("offset")
        offset = np.zeros(1) if given is None else np.asarray(decode(given))
        if any(size != 1 for i, size in enumerate(scales.shape) if i != axis):
            return None
        scales = scales.reshape(-1)
    else:
        return None
    channels = integers.shape[axis]
    grouped = op.op_type == "conv_transpose" and op.inputs.get("groups") is not None and op.groups.val != 1
    if offset.any() or scales.size not in (1, channels) or grouped:
        return None
    return integers, scales


def _only_reader(op: Any, outputs: set[Any]) -> Any:
    """Return the one operator that reads an operator's result, or None."""
    variable = op.outputs[0]
    readers = list(variable.child_ops)
    return readers[0] if len(readers) == 1 and variable not in outputs else None
