"""The graphs that XNNPACK runs inside an ExecuTorch program, read by ExecuTorch's own schema."""

from __future__ import annotations

import importlib.resources
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack.serialization as xnnpack_schema
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary

INTEGERS = ("qint8", "quint8", "qcint8", "qcint4", "qbint4", "qdint8")
CONVERSIONS = ("XNNConvert",)


@dataclass(frozen=True, eq=False)
class Payload:
    """One XNNPACK graph.

    Attributes:
        nodes: kind and fields of each operator, in order.
        values: fields of each tensor by its id, with `quant_params` where it is quantized.
        constants: what `constant_buffer_idx` names; the first is empty.
    """

    nodes: tuple[tuple[str, Mapping[str, Any]], ...]
    values: Mapping[int, Mapping[str, Any]]
    constants: tuple[bytes, ...]

    def dtype(self, identity: int) -> str:
        """Return a tensor's type, as `fp32` or `qcint8`."""
        return str(self.values[identity]["datatype"]).removeprefix("xnn_datatype_")

    def is_integer(self, fields: Mapping[str, Any]) -> bool:
        """Whether an operator computes on integers: it writes them, or reads dynamically quantized ones."""
        read = [self.dtype(v) for k, v in fields.items() if k in ("input1_id", "input_id") and v in self.values]
        return self.dtype(fields["output_id"]) in INTEGERS or "qdint8" in read


def read_program(path: Path) -> PTEFile:
    """Read an ExecuTorch program with its constants."""
    return deserialize_pte_binary(path.read_bytes())


def payloads(file: PTEFile) -> tuple[Payload, ...]:
    """Return the graphs that a program hands to XNNPACK, in order."""
    found = []
    for plan in file.program.execution_plan:
        for delegate in plan.delegates:
            if delegate.id == "XnnpackBackend":
                found.append(_payload(file, file.program.backend_delegate_data[delegate.processed.index].data))
    return tuple(found)


def count_delegated(file: PTEFile) -> tuple[int, int]:
    """Count the operators that XNNPACK computes on integers, and on floats; conversions between both left out."""
    integer = real = 0
    for payload in payloads(file):
        for kind, fields in payload.nodes:
            if kind in CONVERSIONS:
                continue
            if payload.is_integer(fields):
                integer += 1
            else:
                real += 1
    return integer, real


def _payload(file: PTEFile, data: bytes) -> Payload:
    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    start, size = header.flatbuffer_offset, header.flatbuffer_size
    graph = _as_json(data[start : start + size])
    values = {}
    for value in graph["xvalues"]:
        fields = dict(value["xvalue_union"])
        if value["xvalue_union_type"] == "XNNQuantizedTensorValue":
            parameters = fields.get("quant_params", {})
            fields = {**fields["tensor_value"], "quant_params": parameters}
        values[int(fields["id_out"])] = fields
    nodes = tuple((str(n["xnode_union_type"]), dict(n["xnode_union"])) for n in graph["xnodes"])
    base = header.constant_data_offset
    constants = tuple(_constant(file, data, base, entry) for entry in graph["constant_data"])
    return Payload(nodes, values, constants)


def _constant(file: PTEFile, data: bytes, base: int, entry: Mapping[str, Any]) -> bytes:
    key = entry.get("named_key")
    if key and file.named_data is not None:
        return bytes(file.named_data.buffers[file.named_data.pte_data[key].buffer_index])
    start, size = base + int(entry.get("offset", 0)), int(entry.get("size", 0))
    return bytes(data[start : start + size])


def _as_json(flatbuffer: bytes) -> dict[str, Any]:
    schema = importlib.resources.files(xnnpack_schema).joinpath("runtime_schema.fbs").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schema.fbs").write_bytes(schema)
        (Path(folder) / "graph.bin").write_bytes(flatbuffer)
        _flatc_decompile(folder, f"{folder}/schema.fbs", f"{folder}/graph.bin", ["--raw-binary"])
        text = (Path(folder) / "graph.json").read_bytes()
    graph: dict[str, Any] = json.loads(re.sub(rb"(: -?)inf\b", rb"\1Infinity", text))
    return graph
