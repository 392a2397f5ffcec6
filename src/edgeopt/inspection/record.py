"""The form in which every inspector answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgeopt.core.model import TensorSpec

BITS = {
    "float64": 64, "int64": 64, "uint64": 64,
    "float32": 32, "int32": 32, "uint32": 32,
    "float16": 16, "bfloat16": 16, "int16": 16, "uint16": 16,
    "int8": 8, "uint8": 8, "bool": 8, "float8_e4m3fn": 8, "float8_e5m2": 8, "float8e4m3fn": 8, "float8e5m2": 8,
    "float4e2m1": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "uint3": 3, "uint6": 6, "uint1": 1,
}  # fmt: skip
"""Bits that one stored element of a type takes."""
MAX_RANK = 32
"""A tensor with more dimensions is a sign of damage."""


@dataclass(frozen=True)
class Layer:
    """One operator that holds parameters or multiplies.

    Attributes:
        name: the module's path, else the name of the operator or of its output.
        op: operator in the format's own terms.
        parameters: elements of its weights and biases.
        macs: multiply-accumulates of one run; None where they cannot be told.
        output_shape: of its first output; a dimension that varies is -1.
    """

    name: str
    op: str
    parameters: int
    macs: int | None
    output_shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "name": self.name,
            "op": self.op,
            "parameters": self.parameters,
            "macs": self.macs,
            "output_shape": list(self.output_shape),
        }


@dataclass(frozen=True)
class Inspection:
    """What a model or an artifact holds.

    Attributes:
        kind: `model`, or the artifact's format.
        size_bytes: of the file or folder; for a model, of its parameters and buffers.
        parameters: elements of weights and biases. Scales, zero points, shapes and single numbers do not count.
        weight_bytes: what those parameters take as stored.
        weights_by_dtype: parameters per stored type.
        macs: multiply-accumulates of convolutions and matrix products for one run; None where a part is opaque.
        inputs, outputs: the contract.
        ops: operator counts in the format's own terms.
        layers: in order of execution.
        notes: what was not counted, and why.
    """

    kind: str
    size_bytes: int
    parameters: int
    weight_bytes: int
    weights_by_dtype: dict[str, int]
    macs: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "kind": self.kind,
            "size_bytes": self.size_bytes,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "weights_by_dtype": self.weights_by_dtype,
            "macs": self.macs,
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
            "ops": self.ops,
            "layers": [layer.to_json() for layer in self.layers],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Weight:
    """One stored constant that counts as a parameter."""

    dtype: str
    elements: int
    bytes: int


@dataclass
class Tally:
    """Collects weights, operators, layers and notes while an inspector walks its graph."""

    weights: dict[Any, Weight] = field(default_factory=dict)
    ops: Counter[str] = field(default_factory=Counter)
    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)
    opaque: bool = False

    def weight(self, key: Any, dtype: str, elements: int, stored: int | None = None) -> None:
        """Count a constant once, however many operators read it; `stored` bytes if not all elements are stored."""
        self.weights.setdefault(
            key, Weight(dtype, elements, dtype_bytes(dtype, elements) if stored is None else stored)
        )

    def layer(self, name: str, op: str, parameters: int, macs: int | None, output_shape: Iterable[int]) -> None:
        """Record an operator if it holds parameters or multiplies."""
        if parameters or macs or macs is None:
            self.layers.append(Layer(name, op, parameters, macs, tuple(output_shape)))

    def result(
        self, kind: str, size_bytes: int, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
    ) -> Inspection:
        """Sum up."""
        by_dtype: Counter[str] = Counter()
        for weight in self.weights.values():
            by_dtype[weight.dtype] += weight.elements
        unknown = [layer.name for layer in self.layers if layer.macs is None]
        notes = list(self.notes)
        if self.uncounted:
            listed = ", ".join(f"{op} ({count})" for op, count in self.uncounted.most_common())
            notes.append(f"multiply-accumulates of these operators are not counted: {listed}")
        if unknown:
            notes.append(
                f"macs is null: the shapes of {len(unknown)} layers are not known before the model runs "
                f"(first: {unknown[0]})"
            )
        total = None if unknown or self.opaque else sum(layer.macs or 0 for layer in self.layers)
        return Inspection(
            kind=kind,
            size_bytes=size_bytes,
            parameters=sum(by_dtype.values()),
            weight_bytes=sum(w.bytes for w in self.weights.values()),
            weights_by_dtype=dict(by_dtype.most_common()),
            macs=total,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            ops=dict(self.ops.most_common()),
            layers=tuple(self.layers),
            notes=tuple(notes),
        )


def counts_as_weight(dtype: str, elements: int, quantized: bool = False) -> bool:
    """Whether a stored constant is a parameter: floats, and integers that stand for reals; no single numbers."""
    return elements > 1 and (quantized or dtype.startswith(("float", "bfloat")))


def dtype_bytes(dtype: str, elements: int) -> int:
    """Return the bytes that `elements` of a type take, packed."""
    return -(-elements * BITS.get(dtype, 8) // 8)
