"""SavedModel folders, held against a list of operators before TensorFlow reads them.

Loading a SavedModel runs graphs that it carries: those that restore and initialize it. Any operator that reads or
writes files, opens connections or calls Python could be among them.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tf2onnx.tfonnx  # noqa: F401 - registers the operators that can be converted
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tf2onnx.handler import tf_op

from edgeopt.core.errors import SourceError, UnsafeFileError

MAX_BYTES = 8 * 2**30
_WRITERS = frozenset({"SaveV2", "MergeV2Checkpoints"})
"""Every SavedModel has them in its function for saving; in the copy that is loaded they do nothing."""
_PLUMBING = frozenset({
    "Assert", "Assign", "AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp", "Bitcast",
    "BroadcastArgs", "BroadcastGradientArgs", "ConcatOffset", "ControlTrigger", "DestroyResourceOp",
    "DisableCopyOnRead", "Empty", "EmptyTensorList", "Enter", "Exit", "Expm1", "Inv", "IsVariableInitialized",
    "L2Loss", "LinSpace", "ListDiff", "Log1p", "LoopCond", "Merge", "Mod", "NextIteration", "PartitionedCall",
    "PreventGradient", "Rank", "ReadVariableOp", "ResourceGather", "RestoreV2", "ShardedFilename",
    "StatefulPartitionedCall", "StatelessRandomGetKeyCounter", "StatelessRandomUniformV2",
    "StaticRegexFullMatch", "Switch", "TensorListPopBack", "TensorListPushBack", "TruncatedNormal",
    "VarHandleOp", "VarIsInitializedOp", "Variable", "VariableShape", "VariableV2", "Xdivy", "Xlogy",
})  # fmt: skip
_GRADIENT = re.compile(r"(?!SymbolicGradient)(?:\w+Grad(?:V\d|Grad)?|\w+Backprop\w*)")
_REFUSED = frozenset({"FIFOQueueV2", "IteratorGetNext", "IteratorV2", "QueueDequeueManyV2", "QueueDequeueUpToV2",
                      "QueueDequeueV2"})  # fmt: skip


def checked_copy(folder: Path, copy: Path, *, trust: bool) -> None:
    """Write to `copy` what of a SavedModel is needed to load it, without what would write files.

    Raises:
        SourceError: it is damaged.
        UnsafeFileError: an operator or a file in it is none that a model needs; `trust` lets any operator pass.
    """
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(_plain_file(folder, "saved_model.pb").read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:
        raise SourceError(f"{folder}: its saved_model.pb is damaged, or none: {str(error)[:200]}") from error
    if not model.meta_graphs:
        raise SourceError(f"{folder}: its saved_model.pb holds no graph")
    known = {op for domain in tf_op.get_opsets().values() for each in domain for op in each} | _PLUMBING
    known -= _REFUSED
    for node in _nodes(model):
        if node.op in _WRITERS:
            kept = [i for i in node.input if i.startswith("^")]
            node.op = "NoOp"
            del node.input[:]
            node.input.extend(kept)
            node.attr.clear()
        elif not trust and node.op not in known and not _GRADIENT.fullmatch(node.op):
            raise UnsafeFileError(
                f"{folder}: operator {node.op[:60]} at {node.name[:80]!r} is not one that a model for a device needs, "
                "and could read files or run code; --trust-source allows it"
            )
    copy.mkdir(parents=True)
    (copy / "saved_model.pb").write_bytes(model.SerializeToString())
    _copy_variables(folder, copy)


def _copy_variables(folder: Path, copy: Path) -> None:
    source = folder / "variables"
    if not source.is_dir():
        return
    (copy / "variables").mkdir()
    total = 0
    for place in sorted(source.iterdir()):
        if not place.name.startswith("variables."):
            continue
        plain = _plain_file(folder, f"variables/{place.name}")
        total += plain.stat().st_size
        if total > MAX_BYTES:
            raise SourceError(f"{folder}: its variables take more than {MAX_BYTES >> 30} GiB; no model for a device")
        shutil.copyfile(plain, copy / "variables" / place.name)


def _plain_file(folder: Path, name: str) -> Path:
    path = folder / name
    try:
        status = path.lstat()
    except OSError as error:
        raise SourceError(f"{folder}: {name} is missing or cannot be read; copy the whole folder") from error
    if not stat.S_ISREG(status.st_mode) or path.parent.is_symlink():
        raise UnsafeFileError(f"{folder}: {name} is a link or no plain file; replace it by the file itself")
    return path


def _nodes(model: Any) -> Iterator[Any]:
    for graph in model.meta_graphs:
        yield from graph.graph_def.node
        for function in graph.graph_def.library.function:
            yield from function.node_def
