"""`.pt2` exported programs, checked before PyTorch reads them."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of quantized programs

from edgeopt.core.errors import SourceError, UnsafeFileError
from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.sources.archives import refuse_bombs
from edgeopt.sources.request import Loaded, SourceRequest

NAMESPACES = "aten|prims|quantized|quantized_decomposed|torchao|torchvision|higher_order"
OPERATORS = rf"torch\.ops\.(?:{NAMESPACES})(?:\._?[A-Za-z]\w*){{1,2}}"
SAFE_TARGET = re.compile(
    rf"(?!torch\.ops\.aten\.from_file\b){OPERATORS}"
    r"|_operator\.(?:getitem|add|sub|mul|pow|floordiv|truediv|mod|neg|pos|le|ge|lt|gt|eq|ne|and_|or_|not_)"
    r"|torch\.sym_\w+|math\.[a-z]\w*"
)
SAFE_EXPRESSION = re.compile(
    r"(?:[\d\s+*/%(),<>=!.-]|\b[suz]\d+\b|\b(?:and|or|not|True|False|true|false|oo|int_oo|max|min|abs)\b"
    r"|\bSymbol\('\w+'(?:, \w+=(?:True|False))*\)|\bFloat\('[\d.e+-]+', precision=\d+\)"
    r"|\b(?:Add|Mul|Pow|Abs|Integer|Rational|Max|Min|Mod|PythonMod|ModularIndexing|FloorDiv|CleanDiv|CeilDiv"
    r"|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|LShift|RShift|ToFloat|CeilToInt|FloorToInt|RoundToInt|TruncToInt"
    r"|TruncToFloat|RoundDecimal|Where|Identity|IsNonOverlappingAndDenseIndicator|Piecewise|ExprCondPair|And|Or|Not"
    r"|Eq|Ne|Le|Lt|Ge|Gt|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan)\b"
    r"|\bL(?:\[(?:'\w+'|\d+)\])+(?:\.size\(\)|\.shape)?(?:\[\d+\])?)*"
)
SAFE_NAME = re.compile(r"\w*")
SAFE_PATH = re.compile(r"""[^"'\\\x00-\x1f]*""")
NAMES = ("name", "as_name", "forward_arg_names")
PATHS = ("fqn", "parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "user_input_name")
SAFE_MEMBER = re.compile(
    r"archive_format|archive_version|version|byteorder|\.format_version|\.storage_alignment|\.data/\w+"
    r"|data/(?:weights|constants|sample_inputs)/[\w.-]+|models/[\w.-]+\.json|extra/[\w./-]+"
)
SAFE_PAYLOAD = re.compile(r"(?:weight|tensor)_\d+")
MAX_UNPACKED_BYTES = 16 * 2**30


def load(request: SourceRequest) -> Loaded:
    """Load a program; its worker must have `TORCH_FORCE_WEIGHTS_ONLY_LOAD=1` set.

    Raises:
        SourceError: not an exported program, or a damaged one.
        UnsafeFileError: the graph calls something that is no tensor operator, or the archive carries code, without
            `trust`.
    """
    path = Path(request.location)
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch's reader and Python's may see different members in a crafted archive; it is given what was checked.
        checked = check_archive(path, Path(folder, "checked.pt2"), trust=request.trust)
        try:
            program = torch.export.load(str(checked))
        except Exception as error:
            raise SourceError(f"{path}: not an exported program that this PyTorch reads: {_reason(error)}") from error
    return Loaded(program.module(), _inputs(program))


def check_archive(path: Path, checked: Path, *, trust: bool) -> Path:
    """Check checksums, structure, and what the graph would call, without unpickling; returns the file to load.

    Reading a program evaluates its guards and symbolic shapes as Python, writes its names into Python code, resolves
    targets by name and unpickles opaque constants, so each is held against what an exported program needs. The members
    that passed are copied to `checked`.

    Raises:
        SourceError: not an exported program, or a damaged one.
        UnsafeFileError: it holds something that could run code, without `trust`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(archive, path, MAX_UNPACKED_BYTES)
            damaged = archive.testzip()
            if damaged:
                raise SourceError(f"{path}: damaged: the checksum of {damaged} does not match")
            root = _root(archive.namelist(), path)
            if trust:
                return path
            _check_members(archive, root, path)
            with zipfile.ZipFile(checked, "w") as copy:
                for entry in archive.infolist():
                    with archive.open(entry) as source, copy.open(entry.filename, "w", force_zip64=True) as sink:
                        shutil.copyfileobj(source, sink)
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        RecursionError,
    ) as error:
        raise SourceError(f"{path}: not an exported program, or a damaged one") from error
    return checked


def _root(members: list[str], path: Path) -> str:
    roots = {name.partition("/")[0] for name in members}
    root = next(iter(roots), "")
    if len(roots) != 1 or f"{root}/archive_format" not in members:
        raise SourceError(f"{path}: not an exported program (no archive_format in its one folder)")
    if not any(name.startswith(f"{root}/models/") for name in members):
        raise SourceError(f"{path}: holds no exported program")
    if len({name.lower() for name in members}) != len(members):
        raise SourceError(f"{path}: damaged: two files of one name in the archive")
    return root


def _check_members(archive: zipfile.ZipFile, root: str, path: Path) -> None:
    allowed = "--trust-source allows it"
    for name in archive.namelist():
        place = name.removeprefix(f"{root}/")
        if not SAFE_MEMBER.fullmatch(place) or ".." in place:
            raise UnsafeFileError(f"{path}: carries {place[:60]!r}, which could run code; {allowed}")
        if place.startswith("models/"):
            for kind, text in _strings(json.loads(archive.read(name))):
                if not _safe_pattern(kind).fullmatch(text):
                    raise UnsafeFileError(f"{path}: its {kind} {text[:60]!r} is no tensor operation; {allowed}")
        elif place.startswith("data/") and place.endswith("_config.json"):
            payloads = json.loads(archive.read(name))["config"]
            for payload in payloads.values():
                if not SAFE_PAYLOAD.fullmatch(payload["path_name"]):
                    raise UnsafeFileError(f"{path}: its {payload['path_name'][:60]!r} is no tensor; {allowed}")


def _safe_pattern(kind: str) -> re.Pattern[str]:
    if kind in NAMES:
        return SAFE_NAME
    if kind in PATHS:
        return SAFE_PATH
    return SAFE_TARGET if kind == "target" else SAFE_EXPRESSION


def _strings(document: Any) -> list[tuple[str, str]]:
    """Return every text that the reader would evaluate, resolve, or write into the Python code of the graph."""
    found: list[tuple[str, str]] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key, value in item.items():
                if isinstance(value, str) and key in ("target", "expr_str", *NAMES, *PATHS):
                    found.append((key, value))
                elif key in ("guards_code", "forward_arg_names") and value:
                    found.extend((key, str(text)) for text in value)
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
        shape = tuple(_size(d, axis) for axis, d in enumerate(value.shape))
        specs.append(TensorSpec(str(name), shape, str(value.dtype).removeprefix("torch."), layout_of(shape)))
    return tuple(specs)


def _size(dimension: int | torch.SymInt, axis: int) -> int:
    """Return a dimension; an open one is 1 for the batch, else that of the example it was exported with."""
    if isinstance(dimension, int):
        return dimension
    hint = dimension.node.hint
    return int(hint) if axis and hint else 1


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
