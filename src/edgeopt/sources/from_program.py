"""`.pt2` exported programs, checked before PyTorch reads them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of quantized programs

from edgeopt.core.errors import SourceError, UnsafeFileError
from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.sources.request import Loaded, SourceRequest

SAFE_TARGET = re.compile(
    r"torch\.ops\.[\w.]+|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|le|ge|lt|gt|eq|ne)"
    r"|torch\.sym_\w+|math\.\w+|#\w*"
)
SAFE_EXPRESSION = re.compile(
    r"(?:[\d\s+*/%(),<>=!.-]|\b[suz]\d+\b|\b(?:and|or|not|True|False|int_oo)\b"
    r"|\b(?:Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Integer|Symbol|Eq|Ne|Le|Lt|Ge|Gt)\b"
    r"|\bL(?:\[(?:'\w+'|\d+)\])+(?:\.size\(\)|\.shape)?(?:\[\d+\])?)*"
)
MAX_UNPACKED_BYTES = 16 * 2**30


def load(request: SourceRequest) -> Loaded:
    """Load a program; its worker must have `TORCH_FORCE_WEIGHTS_ONLY_LOAD=1` set.

    Raises:
        SourceError: not an exported program, or a damaged one.
        UnsafeFileError: the graph calls something that is no tensor operator, without `trust`.
    """
    path = Path(request.location)
    check_archive(path, trust=request.trust)
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        raise SourceError(f"{path}: not an exported program that this PyTorch reads: {_reason(error)}") from error
    return Loaded(program.module(), _inputs(program))


def check_archive(path: Path, *, trust: bool) -> None:
    """Check checksums, structure, and what the graph would call, without unpickling.

    Reading a program evaluates its guards and symbolic shapes as Python and resolves targets by name, so each is held
    against a list of what an exported program needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                raise SourceError(f"{path}: unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB")
            damaged = archive.testzip()
            if damaged:
                raise SourceError(f"{path}: damaged: the checksum of {damaged} does not match")
            members = archive.namelist()
            roots = {name.partition("/")[0] for name in members}
            if len(roots) != 1 or f"{next(iter(roots))}/archive_format" not in members:
                raise SourceError(f"{path}: not an exported program (no archive_format in its one folder)")
            graphs = [json.loads(archive.read(n)) for n in members if re.search(r"/models/[^/]+\.json$", n)]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{path}: not an exported program, or a damaged one") from error
    if not graphs:
        raise SourceError(f"{path}: holds no exported program")
    if trust:
        return
    if any(name.endswith((".so", ".dylib", ".dll", ".cpp")) for name in members):
        raise UnsafeFileError(f"{path}: carries compiled code; --trust-source allows it")
    for graph in graphs:
        for kind, text in _strings(graph):
            safe = SAFE_TARGET if kind == "target" else SAFE_EXPRESSION
            if not safe.fullmatch(text):
                shown = text[:60]
                raise UnsafeFileError(f"{path}: its {kind} {shown!r} is no tensor operation; --trust-source allows it")


def _strings(document: Any) -> list[tuple[str, str]]:
    """Return every call target and every text that the reader would evaluate."""
    found: list[tuple[str, str]] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key, value in item.items():
                if key in ("target", "expr_str") and isinstance(value, str):
                    found.append((key, value))
                elif key == "guards_code" and value:
                    found.extend((key, str(guard)) for guard in value)
                else:
                    waiting.append(value)
        elif isinstance(item, list):
            waiting.extend(item)
    return found


def _inputs(program: torch.export.ExportedProgram) -> tuple[TensorSpec, ...]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in program.graph_signature.user_inputs:
        value = values.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise SourceError(f"input {name} is no tensor; export the model with tensor inputs only")
        shape = tuple(d if isinstance(d, int) else 1 for d in value.shape)
        specs.append(TensorSpec(str(name), shape, str(value.dtype).removeprefix("torch."), layout_of(shape)))
    return tuple(specs)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
