"""One ONNX node, with typed access to its attributes and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import onnx
import torch
from torch import fx

from edgeopt.core.errors import SourceError, UnsupportedOpError
from edgeopt.onnx_import.grid import Grid
from edgeopt.onnx_import.tensors import to_torch

Value: TypeAlias = torch.Tensor | fx.Node
"""A constant, known while importing, or a value computed by the imported graph."""


@dataclass(frozen=True)
class Quantized:
    """A value that the file holds as integers; the imported graph computes the real numbers they stand for.

    Attributes:
        real: the real numbers.
        grid: of the integers; None where the file computes it at run time, so that they are not known.
    """

    real: Value
    grid: Grid | None


@dataclass(frozen=True)
class Node:
    """A node whose inputs are already imported; an omitted input is None.

    Attributes:
        proto: as the file holds it.
        inputs: a quantized one is the real value that its integers stand for.
        opset: of the standard domain.
        read: the names of all values that some node or a graph's output reads.
        grids: of the inputs that are quantized, by index.
        run: imports a subgraph of this node, given its inputs, and returns its outputs.
    """

    proto: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    opset: int
    read: frozenset[str]
    grids: Mapping[int, Grid | None] = field(default_factory=dict)
    run: Callable[[onnx.GraphProto, Sequence[Value]], tuple[Value, ...]] | None = None

    @property
    def op(self) -> str:
        """Operator name, without its domain."""
        return self.proto.op_type

    @property
    def place(self) -> str:
        """How errors name this node."""
        return f"node {self.proto.name or self.proto.output[0]!r}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name: int, float, bytes, lists of them, or TensorProto."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    def attr_int(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return int(self.attributes.get(name, default))

    def attr_float(self, name: str, default: float) -> float:
        """Return a float attribute."""
        return float(self.attributes.get(name, default))

    def attr_text(self, name: str, default: str = "") -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def attr_ints(self, name: str) -> list[int] | None:
        """Return a list attribute, or None if it is not set."""
        return [int(v) for v in self.attributes[name]] if name in self.attributes else None

    def attr_tensor(self, name: str) -> torch.Tensor:
        """Return a tensor attribute."""
        return to_torch(self.attributes[name], f"attribute {name!r} of {self.place}")

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> Value:
        """Return input `index`.

        Raises:
            SourceError: it is missing.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise SourceError(f"{self.op} at {self.place} lacks input {index}; the file is damaged")
        return value

    def optional(self, index: int) -> Value | None:
        """Return input `index`, or None if it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> torch.Tensor:
        """Return input `index`, which must be known while importing.

        Raises:
            UnsupportedOpError: it is computed from the model's input values.
        """
        value = self.input(index)
        if not isinstance(value, torch.Tensor):
            raise self.unsupported(f"its input {index} is computed at run time; only a constant can be imported")
        return value

    def ints_at(self, index: int, attribute: str) -> list[int] | None:
        """Return a list that newer opsets pass as input `index` and older ones as `attribute`."""
        if self.has(index):
            return [int(v) for v in self.constant(index).reshape(-1).tolist()]
        return self.attr_ints(attribute)

    def used(self, output: int) -> bool:
        """Whether anything reads output `output`."""
        return output < len(self.proto.output) and self.proto.output[output] in self.read

    def subgraph(self, attribute: str, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """Import the graph in `attribute` at this place and return its outputs.

        Raises:
            SourceError: there is none, or it takes another number of inputs.
        """
        graph = self.attributes.get(attribute)
        if not isinstance(graph, onnx.GraphProto) or self.run is None:
            raise SourceError(f"{self.op} at {self.place} lacks its {attribute}; the file is damaged")
        return self.run(graph, inputs)

    def unsupported(self, advice: str) -> UnsupportedOpError:
        """Return the error that this form of the operator cannot be imported."""
        return UnsupportedOpError(self.op, self.place, advice)
