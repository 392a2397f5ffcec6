"""How a model is quantized: what a precision's name says, and the options of the stages that get there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from edgeopt.core.settings import Settings

Estimator = Literal["minmax", "percentile", "mse", "entropy"]
Kind = Literal["float", "static", "dynamic", "weight_only", "palettized"]


@dataclass(frozen=True)
class Scheme:
    """What a precision's name says.

    Attributes:
        kind: `static` activations have calibrated ranges; `dynamic` ones are ranged at each call; the other kinds leave
            activations in float.
        weight_bits: 32, 16, 8, 6 or 4.
        activation_bits: 32, 16 or 8.
    """

    kind: Kind
    weight_bits: int
    activation_bits: int


def scheme_of(precision: str) -> Scheme:
    """Return what a precision's name says; `auto` is `static_wi8_ai8` with some layers kept in float.

    Raises:
        ValueError: it is no precision's name.
    """
    if precision == "auto":
        precision = "static_wi8_ai8"
    if match := re.fullmatch(r"fp(16|32)", precision):
        return Scheme("float", int(match[1]), int(match[1]))
    if match := re.fullmatch(r"static_wi(8)_ai(8|16)", precision):
        return Scheme("static", int(match[1]), int(match[2]))
    if match := re.fullmatch(r"dynamic_wi(8)_afp32", precision):
        return Scheme("dynamic", int(match[1]), 32)
    if match := re.fullmatch(r"weight_only_wi(8|4)_afp32", precision):
        return Scheme("weight_only", int(match[1]), 32)
    if match := re.fullmatch(r"palettized_w(4|6)", precision):
        return Scheme("palettized", int(match[1]), 32)
    raise ValueError(f"{precision!r} names no precision")


def coreml_arithmetic(precision: str) -> Literal["fp32", "fp16", "int8"]:
    """Return the arithmetic of the devices that a Core ML package of a precision is made for.

    Activations are quantized for neural engines with int8 arithmetic (A17 Pro, M4); others compute in float16.
    """
    if precision == "fp32":
        return "fp32"
    return "int8" if precision == "auto" or precision.startswith("static") else "fp16"


class QuantizationOptions(Settings):
    """How weights and activations are brought to integers; the defaults suit nets of convolutions and transformers.

    Attributes:
        backend: who rounds the weights and calibrates: edgeopt's own stages, or the package neural-compressor.
        estimator: of activation ranges.
        equalize: move scale between neighbouring layers before quantizing (convolutions).
        smooth: SmoothQuant's migration strength between 0 and 1 (transformers); None leaves it out.
        rounding: how float weights reach the integer grid.
        correct_bias: take the mean error that quantization adds to a layer's output out of its bias.
        mirror: fit weights and biases to mirrored images too, where the task is one of images.
        block_size: weights that share one scale along the input channels, in block-wise 4-bit.
        keep_float: layers that stay in float, by their names in the exported program.
        reduce_range: weights use 7 of 8 bits, for kernels that add products of bytes in 16 bits and would saturate.
        max_drop: of the task metric (or, without labels, of top-1 agreement or of the overlap of a detector's boxes)
            that `auto` may cost.
        min_snr_db: of the worst output, that `auto` must hold where there are no classes; of a detector too.
        qat_steps: training steps with quantization in the loop; 0 trains nothing.
    """

    backend: Literal["edgeopt", "neural-compressor"] = "edgeopt"
    estimator: Estimator = "mse"
    equalize: bool = True
    smooth: Annotated[float, Field(ge=0, le=1)] | None = 0.5
    rounding: Literal["nearest", "gptq", "adaround"] = "gptq"
    correct_bias: bool = True
    mirror: bool = True
    block_size: Literal[32, 64, 128] = 32
    keep_float: tuple[str, ...] = ()
    reduce_range: bool = False
    max_drop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    min_snr_db: Annotated[float, Field(gt=0, le=120)] = 20.0
    qat_steps: Annotated[int, Field(ge=0)] = 0
