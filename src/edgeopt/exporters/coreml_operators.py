"""How much of a MIL program can run on integers, and what stays in float, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LAYERS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y", "gather": "x"}
PRODUCTS = ("conv", "conv_transpose", "linear", "matmul")
MARKS = ("const", "quantize", "dequantize", "cast")
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
        if op.op_type in MARKS or op.op_type.startswith("constexpr_") or not any(_is_float(v) for v in op.outputs):
            continue
        if _reads_integers(op) and all(_ends_in_quantize(v) for v in op.outputs):
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
                if any(not _is_integer(v) for v in (op.inputs["x"], weight)):
                    layers.append(f"{op.op_type} {op.name}: its input is float")
                elif not all(_ends_in_quantize(v) for v in op.outputs):
                    layers.append(f"{op.op_type} {op.name}: its output is float")
        elif activations and op.op_type in FLOAT_KINDS and not _reads_integers(op):
            others[op.op_type] += 1
    return (*layers, *(f"{count} × {kind}: computed in float" for kind, count in sorted(others.items())))


def _operations(program: Any) -> Iterator[Any]:
    for function in program.functions.values():
        yield from function.operations


def _is_float(variable: Any) -> bool:
    return getattr(variable.dtype, "__name__", "") in ("fp16", "fp32")


def _is_integer(variable: Any) -> bool:
    """Whether a variable's values are integers with a scale: dequantized, or a compressed constant."""
    op = variable.op
    return op is not None and (op.op_type == "dequantize" or op.op_type.startswith("constexpr_"))


def _reads_integers(op: Any) -> bool:
    read = [v for given in op.inputs.values() for v in (given if isinstance(given, tuple | list) else (given,))]
    computed = [v for v in read if v.op is None or v.op.op_type != "const"]
    return bool(computed) and all(_is_integer(v) or _is_clamped(v) for v in computed if _is_float(v))


def _is_clamped(variable: Any) -> bool:
    """Whether a variable is a layer's result on its way into the clamp that belongs to the layer."""
    op = variable.op
    return op is not None and op.op_type in PRODUCTS and _reads_integers(op) and len(variable.child_ops) == 1


def _ends_in_quantize(variable: Any) -> bool:
    users = list(variable.child_ops)
    if not users:
        return False
    clamps = ("relu", "relu6", "clip")
    return all(u.op_type == "quantize" or (u.op_type in clamps and _ends_in_quantize(u.outputs[0])) for u in users)
