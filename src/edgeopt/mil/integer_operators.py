"""Which operators of a quantized program a device can compute on integers."""

from __future__ import annotations

from typing import Any

SUMS = ("add", "sub")
PRODUCTS = ("conv", "conv_transpose", "linear", "matmul")
CLAMPS = ("relu", "relu6", "clip")
MARKS = ("const", "quantize", "dequantize", "cast")


def is_mark(op: Any) -> bool:
    """Whether an operator holds a constant or converts numbers, and so computes nothing."""
    return op.op_type in MARKS or op.op_type.startswith("constexpr_")


def computes_on_integers(op: Any) -> bool:
    """Whether all that an operator reads was integers and all that it makes becomes integers."""
    return not is_mark(op) and reads_integers(op) and all(ends_in_quantize(v) for v in op.outputs)


def is_float(variable: Any) -> bool:
    """Whether a variable holds floats."""
    return getattr(variable.dtype, "__name__", "") in ("fp16", "fp32")


def is_integer(variable: Any) -> bool:
    """Whether a variable's values are integers with a scale: dequantized, or a compressed constant."""
    op = variable.op
    return op is not None and (op.op_type == "dequantize" or op.op_type.startswith("constexpr_"))


def operands_of(op: Any) -> list[Any]:
    """Return the variables that an operator reads, plain constants left out."""
    read = [v for given in op.inputs.values() for v in (given if isinstance(given, tuple | list) else (given,))]
    return [v for v in read if v.op is None or v.op.op_type != "const"]


def reads_integers(op: Any) -> bool:
    """Whether every float that an operator reads is an integer with a scale."""
    computed = operands_of(op)
    return bool(computed) and all(is_integer(v) or _is_clamped(v) for v in computed if is_float(v))


def ends_in_quantize(variable: Any) -> bool:
    """Whether all that read a variable make integers of it, behind clamps at most."""
    users = list(variable.child_ops)
    if not users:
        return False
    return all(u.op_type == "quantize" or (u.op_type in CLAMPS and ends_in_quantize(u.outputs[0])) for u in users)


def _is_clamped(variable: Any) -> bool:
    """Whether a variable is the result of a layer or a sum on its way into the clamp that belongs to it."""
    op = variable.op
    if op is None or len(variable.child_ops) != 1 or not reads_integers(op):
        return False
    return op.op_type in PRODUCTS or (op.op_type in SUMS and variable.child_ops[0].op_type in CLAMPS)
