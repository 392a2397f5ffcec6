"""A TFLite flatbuffer as tensors and operators that can be read, renamed and written back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
FLOAT32 = schema.TensorType.FLOAT32
INT8, INT32, INT64 = schema.TensorType.INT8, schema.TensorType.INT32, schema.TensorType.INT64
INTEGERS = {
    schema.TensorType.INT4: np.int8,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.UINT8: np.uint8,
}


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator: its kind and the indices of the tensors it reads and writes."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class LitertGraph:
    """The first subgraph of a model, which is the only one that litert-torch writes.

    Args:
        content: of a `.tflite` file.
    """

    def __init__(self, content: bytes) -> None:
        self.model: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        self.tensors: list[Any] = self.model.subgraphs[0].tensors

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operators in the order of execution."""
        found = []
        for op in self.model.subgraphs[0].operators:
            code = self.model.operatorCodes[op.opcodeIndex]
            kind = OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
            inputs = tuple(int(i) for i in op.inputs) if op.inputs is not None else ()
            found.append(Operator(kind, inputs, tuple(int(i) for i in op.outputs)))
        return tuple(found)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the graph's input tensors."""
        return tuple(int(i) for i in self.model.subgraphs[0].inputs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the graph's output tensors."""
        return tuple(int(i) for i in self.model.subgraphs[0].outputs)

    def name(self, index: int) -> str:
        """Return a tensor's name."""
        return str(self.tensors[index].name.decode())

    def is_constant(self, index: int) -> bool:
        """Whether a tensor's values are stored in the file."""
        return self._data(index) is not None

    def is_activation(self, index: int) -> bool:
        """Whether a tensor is computed, or given, as floats."""
        return index >= 0 and self.tensors[index].type == FLOAT32 and not self.is_constant(index)

    def floats(self, index: int) -> np.ndarray:
        """Return a stored float tensor."""
        return np.frombuffer(self._data(index), np.float32).reshape(self._shape(index))

    def integers(self, index: int) -> np.ndarray:
        """Return a stored integer tensor; two 4-bit numbers share a byte, the first in its low half."""
        kind = self.tensors[index].type
        data = np.frombuffer(self._data(index), INTEGERS[kind] if kind != schema.TensorType.INT4 else np.uint8)
        if kind == schema.TensorType.INT4:
            halves = np.stack([data & 15, data >> 4], axis=-1).reshape(-1).astype(np.int8)
            data = (halves ^ 8) - 8
            data = data[: int(np.prod(self._shape(index)))]
        return data.reshape(self._shape(index))

    def store(self, index: int, values: np.ndarray) -> None:
        """Replace a stored tensor's values, shape and type as they are; tensors that shared them keep theirs."""
        assert values.dtype == INTEGERS[self.tensors[index].type] and values.shape == self._shape(index)
        data = np.frombuffer(values.tobytes(), np.uint8)
        own = self.tensors[index].buffer
        if sum(tensor.buffer == own for subgraph in self.model.subgraphs for tensor in subgraph.tensors) == 1:
            self.model.buffers[own].data = data
            return
        buffer = schema.BufferT()
        buffer.data = data
        self.model.buffers.append(buffer)
        self.tensors[index].buffer = len(self.model.buffers) - 1

    def rename(self, names: dict[int, str]) -> None:
        """Give tensors names by their indices; a name that is taken gets a number behind it."""
        taken: set[str] = set()
        for index, tensor in enumerate(self.tensors):
            wanted = names.get(index, f"t{index}")
            name, count = wanted, 1
            while name in taken:
                name, count = f"{wanted}_{count}", count + 1
            taken.add(name)
            tensor.name = name.encode()

    def to_bytes(self) -> bytes:
        """Return the model as a file's content."""
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def _shape(self, index: int) -> tuple[int, ...]:
        shape = self.tensors[index].shape
        return () if shape is None else tuple(int(d) for d in shape)

    def _data(self, index: int) -> Any:
        data = self.model.buffers[self.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else data
