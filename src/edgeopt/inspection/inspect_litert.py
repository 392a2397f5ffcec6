"""LiteRT (TFLite) files, read as data: the interpreter is never given an unchecked file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.inspection import macs
from edgeopt.inspection.flatbuffer import Buffer, Table, item
from edgeopt.inspection.record import BITS, MAX_RANK, Inspection, Tally, counts_as_weight, dtype_bytes

_OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_DTYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
_MULTIPLY_BUT_OPAQUE = {
    "LSTM", "RNN", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CONVOLUTION",
}  # fmt: skip


class _Tensor:
    """One tensor of a subgraph."""

    def __init__(self, table: Table, buffers: list[Table]) -> None:
        self.shape = table.integers(0)
        self.signature = table.integers(7)
        code = table.integer(1, "<b")
        self.dtype = _DTYPES.get(code, "")
        if not self.dtype:
            raise ArtifactError(f"{table.buffer.name} is damaged: tensor type {code} does not exist; make it again")
        self.name = table.text(3)
        self.buffer = table.integer(2, "<I")
        quantization = table.table(4)
        self.scale = quantization.floats(2) if quantization else ()
        self.zero_point = quantization.integers(3, "<q") if quantization else ()
        self.quantized = bool(self.scale) or (quantization is not None and quantization.integer(4, "<B") != 0)
        self.stored = _stored_bytes(item(buffers, self.buffer, "buffer", table.buffer))

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_weight(self) -> bool:
        return self.stored > 0 and counts_as_weight(self.dtype, self.elements, self.quantized)

    def spec(self, name: str) -> TensorSpec:
        whole = len(self.scale) == 1
        return TensorSpec(
            name,
            self.signature or self.shape,
            self.dtype,
            scale=self.scale[0] if whole else None,
            zero_point=(self.zero_point[0] if self.zero_point else 0) if whole else None,
        )


def inspect(path: Path) -> Inspection:
    """Inspect a `.tflite` file.

    Raises:
        ArtifactError: not a LiteRT file, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if data[4:8] != b"TFL3":
        raise ArtifactError(f"{path} is not a LiteRT file: it lacks the identifier TFL3")
    buffer = Buffer(memoryview(data), str(path))
    model = buffer.root()
    buffers = list(model.tables(4))
    codes = [_op_name(code) for code in model.tables(1)]
    subgraphs = list(model.tables(2))
    if not subgraphs:
        raise ArtifactError(f"{path} is damaged: it holds no graph; make it again")
    tally = Tally()
    main: list[_Tensor] = []
    for index, subgraph in enumerate(subgraphs):
        tensors = [_Tensor(t, buffers) for t in subgraph.tables(0)]
        for tensor in tensors:
            _check_stored(tensor, path)
        _walk(subgraph, tensors, codes, tally, path)
        main = main if index else tensors
    if len(subgraphs) > 1:
        tally.notes.append(f"{len(subgraphs)} subgraphs; each is counted once, however often it runs")
    names = _signature_names(model)
    inputs, outputs = (
        [_at(main, i, path).spec(names.get((kind, i), _at(main, i, path).name)) for i in subgraphs[0].integers(slot)]
        for kind, slot in (("input", 1), ("output", 2))
    )
    return tally.result("litert", len(data), inputs, outputs)


def _walk(subgraph: Table, tensors: list[_Tensor], codes: list[str], tally: Tally, path: Path) -> None:
    for operator in subgraph.tables(3):
        index = operator.integer(0, "<I")
        if index >= len(codes):
            raise ArtifactError(f"{path} is damaged: it refers to operator code {index} of {len(codes)}")
        op = codes[index]
        tally.ops[op] += 1
        inputs = [None if i < 0 else _at(tensors, i, path) for i in operator.integers(1)]
        outputs = [_at(tensors, i, path) for i in operator.integers(2)]
        weights = [t for t in inputs if t is not None and t.is_weight]
        for tensor in weights:
            tally.weight(tensor.buffer, tensor.dtype, tensor.elements)
        if op in _MULTIPLY_BUT_OPAQUE or op.startswith("CUSTOM"):
            tally.uncounted[op] += 1
        count = _MACS[op](inputs, outputs, operator) if op in _MACS else 0
        shape = outputs[0].shape if outputs else ()
        tally.layer(outputs[0].name if outputs else op, op, sum(t.elements for t in weights), count, shape)


_Tensors = list["_Tensor | None"]


def _shape(tensors: _Tensors, index: int) -> tuple[int, ...] | None:
    tensor = tensors[index] if index < len(tensors) else None
    return None if tensor is None else tensor.shape


def _conv(inputs: _Tensors, outputs: list[_Tensor], _: Table) -> int | None:
    return macs.convolution(outputs[0].shape if outputs else None, _shape(inputs, 1))


def _depthwise(inputs: _Tensors, outputs: list[_Tensor], _: Table) -> int | None:
    weight = _shape(inputs, 1)
    return None if not weight or not outputs else macs.times(outputs[0].shape, macs.elements(weight[1:-1]))


def _fully_connected(inputs: _Tensors, outputs: list[_Tensor], _: Table) -> int | None:
    weight = _shape(inputs, 1)
    return None if not weight or not outputs else macs.times(outputs[0].shape, weight[-1])


def _transpose_conv(inputs: _Tensors, _: list[_Tensor], __: Table) -> int | None:
    weight = _shape(inputs, 1)
    return None if not weight else macs.times(_shape(inputs, 2), macs.elements(weight[:-1]))


def _conv_3d(inputs: _Tensors, outputs: list[_Tensor], _: Table) -> int | None:
    weight = _shape(inputs, 1)
    return None if not weight or not outputs else macs.times(outputs[0].shape, macs.elements(weight[:-1]))


def _conv_3d_transpose(inputs: _Tensors, _: list[_Tensor], __: Table) -> int | None:
    weight = _shape(inputs, 1)
    return None if not weight else macs.times(_shape(inputs, 2), macs.elements(weight[:-1]))


def _batch_matmul(inputs: _Tensors, outputs: list[_Tensor], operator: Table) -> int | None:
    options = operator.table(4)
    adjoint = bool(options.integer(0, "<B")) if options else False
    return macs.matmul(_shape(inputs, 0), outputs[0].shape if outputs else None, adjoint)


_MACS: dict[str, Callable[[_Tensors, list[_Tensor], Table], int | None]] = {
    "BATCH_MATMUL": _batch_matmul,
    "CONV_2D": _conv,
    "CONV_3D": _conv_3d,
    "CONV_3D_TRANSPOSE": _conv_3d_transpose,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
}


def _op_name(code: Table) -> str:
    custom = code.text(1)
    number = max(code.integer(0, "<b"), code.integer(3, "<i"))  # codes above 127 do not fit the older field
    name = _OP_NAMES.get(number, f"UNKNOWN_{number}")
    return f"CUSTOM:{custom}" if name == "CUSTOM" else name


def _stored_bytes(buffer: Table) -> int:
    inline = len(buffer.bytes(0))
    if inline:
        return inline
    offset, size = buffer.integer(1, "<Q"), buffer.integer(2, "<Q")
    if offset > 1 and offset + size > len(buffer.buffer.data):
        raise buffer.buffer.damaged(offset + size)
    return size if offset > 1 else 0


def _check_stored(tensor: _Tensor, path: Path) -> None:
    if len(tensor.shape) > MAX_RANK or any(d < 0 for d in tensor.shape):
        raise ArtifactError(
            f"{path} is damaged: tensor {tensor.name!r} has shape {list(tensor.shape[:MAX_RANK])}; make it again"
        )
    if tensor.stored and tensor.dtype in BITS and tensor.stored < dtype_bytes(tensor.dtype, tensor.elements):
        raise ArtifactError(
            f"{path} is damaged: tensor {tensor.name!r} of shape {list(tensor.shape)} has {tensor.stored} bytes; "
            "make it again"
        )


def _at(tensors: list[_Tensor], index: int, path: Path) -> _Tensor:
    if not 0 <= index < len(tensors):
        raise ArtifactError(f"{path} is damaged: it refers to tensor {index} of {len(tensors)}; make it again")
    return tensors[index]


def _signature_names(model: Table) -> dict[tuple[str, int], str]:
    """Return the names under which a caller knows the tensors of the first subgraph."""
    names: dict[tuple[str, int], str] = {}
    for signature in model.tables(7):
        if signature.integer(4, "<I") == 0:
            for kind, slot in (("input", 0), ("output", 1)):
                for entry in signature.tables(slot):
                    names.setdefault((kind, entry.integer(1, "<I")), entry.text(0))
    return names
