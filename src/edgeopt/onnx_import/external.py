"""External data of an ONNX file: only plain files inside the model's own folder are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper

from edgeopt.core.errors import SourceError, UnsafeFileError


def load_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read every external tensor of `model` into it, from files in `folder`.

    Raises:
        UnsafeFileError: a location that is absolute, leaves the folder, or is a link (hard links too).
        SourceError: a file is missing or too short.
    """
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = _checked_location(entries.get("location", ""), folder, tensor.name)
        offset, length = (_whole(entries.get(key, "0"), key, tensor.name) for key in ("offset", "length"))
        if offset + length > path.stat().st_size:
            raise SourceError(
                f"tensor {tensor.name!r} needs bytes up to {offset + length} of {path}, which has "
                f"{path.stat().st_size}; copy the file again"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise SourceError(f"external data of tensor {tensor.name!r} cannot be read from {path}: {error}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _whole(text: str, key: str, tensor: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SourceError(f"tensor {tensor!r}: external data {key} is {text[:40]!r}, not a number; the file is damaged")
    return int(text[:20])


def _checked_location(location: str, folder: Path, tensor: str) -> Path:
    unsafe = f"tensor {tensor!r}: external data at {location[:200]!r}"
    parts = Path(location).parts
    if not location or "\0" in location or "\\" in location or Path(location).is_absolute() or ".." in parts:
        raise UnsafeFileError(f"{unsafe} is outside the model's folder; keep the data beside the model")
    path = folder
    for part in parts:
        path = path / part
        try:
            status = os.lstat(path)
        except OSError as error:
            raise SourceError(f"{unsafe} is missing; copy it beside the model") from error
        if stat.S_ISLNK(status.st_mode):
            raise UnsafeFileError(f"{unsafe} is a symbolic link; replace it by the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(f"{unsafe} is not a plain file")
    if status.st_nlink > 1:
        raise UnsafeFileError(f"{unsafe} is a hard link to another file; replace it by a copy")
    return path


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
