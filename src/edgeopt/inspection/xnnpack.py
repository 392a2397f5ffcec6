"""The payload that ExecuTorch hands to its XNNPACK delegate: a header, a FlatBuffer graph, constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeopt.core.errors import ArtifactError
from edgeopt.inspection import macs
from edgeopt.inspection.flatbuffer import Buffer, Table
from edgeopt.inspection.record import MAX_RANK, Tally, counts_as_weight

_NODES = (
    "", "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d", "MaxPooling2d",
    "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d", "SquareRoot",
    "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU", "Concatenate2",
    "Concatenate3", "Concatenate4", "StaticSlice", "ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5",
    "ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)  # fmt: skip
"""Node kinds in the order of the schema's union."""

_DTYPES = {
    1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32", 8: "int4", 9: "int8",
    10: "int4", 11: "int8", 12: "int32", 13: "float32", 14: "bfloat16",
}  # fmt: skip
_QUANTIZED = {3, 4, 5, 6, 7, 8, 10}
_QUANTIZED_VALUE = 2


@dataclass(frozen=True)
class _Value:
    shape: tuple[int, ...]
    dtype: str
    quantized: bool
    constant: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_weight(self) -> bool:
        return self.constant > 0 and counts_as_weight(self.dtype, self.elements, self.quantized)


def count_xnnpack(payload: Buffer, delegate: int, named: set[str], tally: Tally) -> int:
    """Add the nodes and constants of one payload to `tally`; return the number of nodes.

    `named` are the keys of data that the program stores once for all delegates: constants shared between payloads
    count once.

    Raises:
        ArtifactError: the payload is damaged.
    """
    graph = _graph(payload)
    constants = list(graph.tables(8))
    keys = [constant.text(2) for constant in constants]
    outside = sum(1 for key in keys if key and key not in named)
    if outside:
        tally.notes.append(f"{outside} constants of {payload.name} lie in another file; size_bytes leaves them out")
    values = dict(map(_value, graph.tables(2)))
    nodes = 0
    for index, node in enumerate(graph.tables(1)):
        kind, body = node.integer(0, "<B"), node.table(1)
        if not 0 < kind < len(_NODES) or body is None:
            raise ArtifactError(f"{payload.name} is damaged: node kind {kind} does not exist; make it again")
        nodes += 1
        name = _NODES[kind]
        tally.ops[f"xnnpack.{name}"] += 1
        count, read, output = _count(name, body, values)
        weights = {v.constant: v for v in read if v is not None and v.is_weight}
        for place, value in weights.items():
            if place >= len(keys):
                raise ArtifactError(f"{payload.name} is damaged: it refers to constant {place}; make it again")
            tally.weight(keys[place] or (delegate, place), value.dtype, value.elements)
        parameters = sum(v.elements for v in weights.values())
        tally.layer(
            f"delegate_{delegate}.{index}", f"xnnpack.{name}", parameters, count, output.shape if output else ()
        )
    return nodes


def _graph(payload: Buffer) -> Table:
    if bytes(payload.data[4:8]) == b"XN01":
        return payload.root()
    if bytes(payload.data[4:8]) != b"XH00":
        raise ArtifactError(f"{payload.name} is damaged: it has no XNNPACK header; make it again")
    start, size = payload.integer("<I", 10), payload.integer("<I", 14)
    if start + size > len(payload.data):
        raise payload.damaged(start + size)
    return Buffer(payload.data[start : start + size], payload.name).root()


def _value(entry: Table) -> tuple[int, _Value]:
    tensor = entry.table(1)
    if tensor is not None and entry.integer(0, "<B") == _QUANTIZED_VALUE:
        tensor = tensor.table(0)
    if tensor is None:
        raise ArtifactError(f"{entry.buffer.name} is damaged: a value is empty; make it again")
    code = tensor.integer(0, "<h")
    if code not in _DTYPES:
        raise ArtifactError(f"{entry.buffer.name} is damaged: tensor type {code} does not exist; make it again")
    if len(tensor.integers(2, "<I")) > MAX_RANK:
        raise ArtifactError(f"{entry.buffer.name} is damaged: a value has too many dimensions; make it again")
    value = _Value(tensor.integers(2, "<I"), _DTYPES[code], code in _QUANTIZED, tensor.integer(3, "<I"))
    return tensor.integer(6, "<I"), value


def _count(
    name: str, node: Table, values: dict[int, _Value]
) -> tuple[int | None, tuple[_Value | None, ...], _Value | None]:
    """Return a node's multiply-accumulates, the values it may hold as weights, and its output."""

    def at(slot: int) -> _Value | None:
        return values.get(node.integer(slot, "<I"))

    def shape(value: _Value | None) -> tuple[int, ...] | None:
        return value.shape if value else None

    if name in ("Conv2d", "DepthwiseConv2d", "ConvTranspose2d"):
        kernel = node.integer(4, "<I") * node.integer(5, "<I")
        if name == "ConvTranspose2d":
            count = macs.times(shape(at(15)), kernel, node.integer(11, "<I"))
        else:
            count = macs.times(shape(at(18)), kernel, node.integer(10, "<I"))
        return count, (at(16), at(17)), at(18)
    if name == "FullyConnected":
        weight, output = at(1), at(3)
        width = output.shape[-1] if output and output.shape else 0
        depth = weight.elements // width if weight and width else None
        return macs.times(shape(output), depth), (weight, at(2)), output
    if name == "BatchMatrixMultiply":
        return macs.matmul(shape(at(0)), shape(at(2))), (at(0), at(1)), at(2)
    if name == "ScaledDotProductAttention":
        return macs.attention(shape(at(0)), shape(at(1)), shape(at(2))), (), at(5)
    if name in ("Add", "Div", "Minimum", "Multiply", "Subtract", "Maximum", "PReLU"):
        return 0, (at(0), at(1)), at(2)
    return 0, (), None
