"""How much of a program really is compressed, and what compression did to its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types

from edgeopt.mil.constexpr import decode, is_constant
from edgeopt.mil.package import Program
from edgeopt.mil.snr import snr_db
from edgeopt.mil.values import type_name

# Parameters that hold weights, by operator.
_WEIGHTS: dict[str, tuple[str, ...]] = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "einsum": ("values",),
    "gather": ("x",),
    "gru": ("weight_ih", "weight_hh"),
    "linear": ("weight",),
    "lstm": ("weight_ih", "weight_hh", "weight_ih_back", "weight_hh_back"),
    "matmul": ("x", "y"),
    "rnn": ("weight_ih", "weight_hh"),
}
_DEFAULT_THRESHOLD = 2048  # coremltools leaves smaller weights as they are unless told otherwise


@dataclass(frozen=True)
class Layer:
    """One weight of one layer.

    Attributes:
        name: of the operator's result.
        kind: operator type.
        parameter: which of its inputs.
        shape: of the decoded weight.
        compression: such as `float32`, `int8`, `lut 4 bit`, `sparse + lut 6 bit`.
        stored_bytes: what the package holds for it, scales, tables and masks included.
        float_bytes: what half precision would take.
        quantized_input: whether the layer's data comes from a `dequantize`, so that a device can compute in integers.
        reason: why it was left in float, as far as its shape tells; empty where it is compressed.
        snr_db: of the decoded weight against the reference's; None without a counterpart.
    """

    name: str
    kind: str
    parameter: str
    shape: tuple[int, ...]
    compression: str
    stored_bytes: int
    float_bytes: int
    quantized_input: bool
    reason: str = ""
    snr_db: float | None = None

    @property
    def compressed(self) -> bool:
        """Whether it is stored in another form than as plain floats."""
        return not self.compression.startswith("float")

    @property
    def damaged(self) -> bool:
        """Whether it differs from its reference by more than any compression intends, or changed without being one."""
        return self.snr_db is not None and self.snr_db < (3.0 if self.compressed else 40.0)


@dataclass(frozen=True)
class Coverage:
    """All weights of a program."""

    layers: tuple[Layer, ...]

    @property
    def compressed(self) -> tuple[Layer, ...]:
        """Layers stored in another form than as plain floats."""
        return tuple(layer for layer in self.layers if layer.compressed)

    @property
    def left_float(self) -> tuple[Layer, ...]:
        """Layers stored as floats, each with a reason."""
        return tuple(layer for layer in self.layers if not layer.compressed)

    @property
    def damaged(self) -> tuple[Layer, ...]:
        """Layers whose weights a compressor has broken; needs a reference to tell."""
        return tuple(layer for layer in self.layers if layer.damaged)

    @property
    def stored_bytes(self) -> int:
        """What the package holds for all of them."""
        return sum(layer.stored_bytes for layer in self.layers)

    @property
    def float_bytes(self) -> int:
        """What half precision would take for all of them."""
        return sum(layer.float_bytes for layer in self.layers)

    def not_quantized(self) -> tuple[str, ...]:
        """Return one line for each layer left in float, for an artifact's record."""
        return tuple(f"{layer.kind} {layer.name}: {layer.reason}" for layer in self.left_float)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "layers": len(self.layers),
            "compressed": len(self.compressed),
            "stored_bytes": self.stored_bytes,
            "float_bytes": self.float_bytes,
            "weights": [asdict(layer) for layer in self.layers],
        }


def coverage(program: Program, reference: Program | None = None) -> Coverage:
    """List the weights of a program with their compression.

    Args:
        program: loaded from a package.
        reference: its float twin; weights of the same layer are compared.
    """
    known = {} if reference is None else {_key(op, name): var for op, name, var in _weights(reference.body)}
    return Coverage(tuple(_layer(op, name, var, known.get(_key(op, name))) for op, name, var in _weights(program.body)))


def base_name(name: str) -> str:
    """Return a variable's name without what coremltools' passes append to it."""
    return re.sub(r"(_cast)?(_(fp16|fp32|quantized|dequantized|palettized))*$", "", name)


def _key(op: Any, parameter: str) -> tuple[str, str]:
    return base_name(op.outputs[0].name), parameter


def _weights(block: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield (operator, parameter, variable) of every constant float weight, nested blocks included."""
    for op in block.operations:
        for parameter in _WEIGHTS.get(op.op_type, ()):
            given = op.inputs.get(parameter)
            for var in given if isinstance(given, tuple | list) else (given,):
                if var is not None and type_name(var) in ("fp16", "fp32") and _is_weight(var):
                    yield op, parameter, var
        for nested in op.blocks:
            yield from _weights(nested)


def _is_weight(var: Any) -> bool:
    return bool(is_constant(var)) or (var.op is not None and var.op.op_type == "dequantize" and _is_stored(var.op))


def _is_stored(op: Any) -> bool:
    """Whether a `dequantize` reads a constant."""
    return bool(is_constant(op.inputs["input"]))


def decoded(var: Any) -> Any:
    """Return a weight as a float32 array, also where an ordinary `dequantize` of a constant makes it."""
    if var.op.op_type != "dequantize":
        return decode(var)
    data = np.asarray(decode(var.op.inputs["input"]), dtype=np.float32)
    axis_var = var.op.inputs.get("axis")
    axis = 0 if axis_var is None else int(np.asarray(decode(axis_var)))
    shape = [-1 if i == axis % data.ndim else 1 for i in range(data.ndim)]
    parts = []
    for name in ("scale", "zero_point"):
        given = var.op.inputs.get(name)
        value = np.zeros((), np.float32) if given is None else np.asarray(decode(given), dtype=np.float32)
        parts.append(value.reshape(shape) if value.ndim else value)
    return parts[0] * (data - parts[1])


def _layer(op: Any, parameter: str, var: Any, twin: Any) -> Layer:
    value = decoded(var)
    compression = _compression(var)
    snr = None
    if twin is not None:
        truth = decoded(twin)
        snr = snr_db(truth, value) if truth.shape == value.shape else None
    data = op.inputs.get("x")
    quantized = data is not None and not isinstance(data, tuple | list) and data.op is not None
    return Layer(
        op.outputs[0].name,
        op.op_type,
        parameter,
        tuple(int(d) for d in value.shape),
        compression,
        _stored_bytes(var),
        2 * int(value.size),
        bool(quantized and data.op.op_type == "dequantize"),
        _reason(value.shape) if compression.startswith("float") else "",
        snr,
    )


def _reason(shape: tuple[int, ...]) -> str:
    """Say what in a weight's shape commonly keeps a compressor away."""
    elements = int(np.prod(shape))
    reasons = []
    if elements < _DEFAULT_THRESHOLD:
        reasons.append(f"{elements} elements, below coremltools' default threshold of {_DEFAULT_THRESHOLD}")
    for side, size in zip(("output", "input"), shape, strict=False):
        groups = [str(group) for group in (8, 16, 32) if size % group]
        if groups:
            reasons.append(f"{size} {side} channels do not divide into groups of {', '.join(groups)}")
    return "; ".join(reasons) or "the compressor passed over it, or was not asked to compress it"


def _compression(var: Any) -> str:
    """Describe how a weight is stored, outermost form first."""
    op = var.op
    if op.op_type == "const":
        name = type_name(var)
        return {"fp16": "float16", "fp32": "float32"}.get(name or "", name or "")
    kind, given = op.op_type.removeprefix("constexpr_"), op.inputs
    if kind == "cast":
        return "float16"
    if kind == "dequantize":
        return str(type_name(given["input"]))
    if kind == "affine_dequantize":
        return str(type_name(given["quantized_data"]))
    if kind == "blockwise_shift_scale":
        inner = given["data"]
        return f"{type_name(inner)} scaled" if is_plain(inner) else f"{_compression(inner)} scaled"
    if kind == "lut_to_dense":
        lut = given["lut"]
        table = "" if is_plain(lut) else f" of {_compression(lut)}"
        return f"lut {_table_bits(lut)} bit{table}"
    if kind == "sparse_to_dense":
        inner = given["nonzero_data"]
        return "sparse" if is_plain(inner) else f"sparse + {_compression(inner)}"
    if kind == "lut_to_sparse":
        return f"lut {_table_bits(given['lut'])} bit"
    if kind == "sparse_blockwise_shift_scale":
        inner = given["nonzero_data"]
        return str(type_name(inner)) if is_plain(inner) else _compression(inner)
    return str(kind)


def is_plain(var: Any) -> bool:
    """Whether a constant is stored without any compression."""
    return bool(var.op is not None and var.op.op_type == "const")


def _table_bits(lut: Any) -> int:
    entries = lut.shape[-2] if len(lut.shape) > 1 else lut.shape[0]
    return int(entries - 1).bit_length()


def _stored_bytes(var: Any, seen: set[Any] | None = None) -> int:
    """Sum what a weight's constants take in the package, each once."""
    seen = set() if seen is None else seen
    if var in seen or var.op is None:
        return 0
    seen.add(var)
    if var.op.op_type == "const":
        if types.is_str(var.sym_type) or not var.shape:
            return 0
        elements = int(np.prod(var.shape))
        return -(-elements * _bits(var) // 8)
    if var.op in seen:
        return 0
    seen.add(var.op)
    return sum(_stored_bytes(v, seen) for v in var.op.inputs.values() if not isinstance(v, tuple | list))


def _bits(var: Any) -> int:
    name = types.builtin_to_string(var.sym_type.get_primitive() if types.is_tensor(var.sym_type) else var.sym_type)
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 8
