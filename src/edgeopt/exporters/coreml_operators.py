"""How much of a MIL program can run on integers, and what stays in float, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeopt.mil.integer_operators import (
    PRODUCTS,
    computes_on_integers,
    ends_in_quantize,
    is_float,
    is_integer,
    is_mark,
    reads_integers,
)

LAYERS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y", "gather": "x"}
FLOAT_KINDS = (
    "softmax",
    "layer_norm",
    "batch_norm",
    "instance_norm",
    "sigmoid",
    "gelu",
    "silu",
    "sigmoid_hard",
    "tanh",
)


@dataclass(frozen=True)
class OperatorCounts:
    """Operators of a program, constants and conversions between numbers left out.

    Attributes:
        integer: all their float operands come from a `dequantize` or a compressed constant and every result goes into a
            `quantize`, itself or behind a clamp, so that a device may compute them on integers.
        real: the others that compute on floats.
    """

    integer: int
    real: int


def count_operators(program: Any) -> OperatorCounts:
    """Count the operators of a PyMIL program that a device may compute on integers, and those it cannot."""
    integer = real = 0
    for op in _operations(program):
        if is_mark(op) or not any(is_float(v) for v in op.outputs):
            continue
        if computes_on_integers(op):
            integer += 1
        else:
            real += 1
    return OperatorCounts(integer, real)


def left_in_float(program: Any, activations: bool) -> tuple[str, ...]:
    """Return one line for each layer whose weights, or whose activations where asked, are floats; and float operators.

    Args:
        program: a PyMIL program.
        activations: whether the precision quantizes them.
    """
    layers: list[str] = []
    others: Counter[str] = Counter()
    for op in _operations(program):
        if op.op_type in LAYERS:
            weight = op.inputs[LAYERS[op.op_type]]
            if weight.op is not None and weight.op.op_type == "const":
                if op.op_type in PRODUCTS or weight.rank == 2:
                    layers.append(f"{op.op_type} {op.name}: its weights are float")
            elif activations and op.op_type in PRODUCTS:
                if any(not is_integer(v) for v in (op.inputs["x"], weight)):
                    layers.append(f"{op.op_type} {op.name}: its input is float")
                elif not all(ends_in_quantize(v) for v in op.outputs):
                    layers.append(f"{op.op_type} {op.name}: its output is float")
        elif activations and op.op_type in FLOAT_KINDS and not reads_integers(op):
            others[op.op_type] += 1
    return (*layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))


def _operations(program: Any) -> Iterator[Any]:
    for function in program.functions.values():
        yield from function.operations
