"""Keras files, held against what such a file needs before Keras reads them.

Loading one builds the classes that its configuration names with the arguments it gives: some of them run code that the
file carries, unpickle, or read other files. `check` reads archives, HDF5 structure and configuration only.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from edgeopt.core.errors import SourceError, UnsafeFileError
from edgeopt.sources.archives import refuse_bombs

MAX_UNPACKED_BYTES = 8 * 2**30
MAX_CONFIG_BYTES = 64 * 2**20
MAX_SIZE = 2**31
"""No number in a layer's configuration is larger; a file that has one is broken or hostile."""

_MEMBER = re.compile(r"metadata\.json|config\.json|model(?:_\d+)?\.weights\.(?:h5|json)")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_RUNS_CODE = {
    "Lambda": "a Lambda layer, whose code is in the file",
    "__lambda__": "a lambda, whose code is in the file",
    "TFOpLambda": "a TFOpLambda layer, which calls any function of TensorFlow",
    "SlicingOpLambda": "a SlicingOpLambda layer, which calls any function of TensorFlow",
    "TorchModuleWrapper": "a TorchModuleWrapper layer, which unpickles",
    "JaxLayer": "a JaxLayer, which unpickles",
    "FlaxLayer": "a FlaxLayer, which unpickles",
    "TFSMLayer": "a TFSMLayer, which loads another model",
    "StringLookup": "a StringLookup layer, which reads other files",
    "IntegerLookup": "an IntegerLookup layer, which reads other files",
    "TextVectorization": "a TextVectorization layer, which reads other files",
}
_NO_SIZES = ("seed", "shared_object_id")
_MODULE = re.compile(r"(?:keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)(?:\.\w+)*|builtins")
_FUNCTION_MODULE = re.compile(
    r"keras(?:\.src)?\.(?:activations|initializers|ops|losses|metrics|regularizers)(?:\.\w+)*"
)


def check(*, path: str, trust: bool) -> str:
    """Check a `.keras` or `.h5` file; return which it is: `keras` or `h5`.

    Raises:
        SourceError: it is damaged, or another kind of file than its name says.
        UnsafeFileError: loading it would run code or read other files, without `trust`.
    """
    file = Path(path)
    with file.open("rb") as source:
        head = source.read(len(_HDF5))
    named = "keras" if file.suffix.lower() == ".keras" else "h5"
    found = "h5" if head == _HDF5 else "keras" if head[:4] == b"PK\x03\x04" else None
    if found is None:
        raise SourceError(f"{path} is not a Keras model: neither an HDF5 file nor a zip archive; is it whole?")
    if found != named:
        right = ".h5" if found == "h5" else ".keras"
        raise SourceError(f"{path} holds what a {right} file does; rename it to {file.stem}{right}")
    try:
        if found == "keras":
            _check_archive(file, trust=trust)
        else:
            _check_hdf5(file, file, trust=trust, whole=True)
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        KeyError,
        NotImplementedError,
        OSError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SourceError(f"{path} is damaged, or not a Keras model: {_first_line(error)}") from error
    return found


def _check_archive(path: Path, *, trust: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if not e.is_dir()]
        refuse_bombs(archive, path, MAX_UNPACKED_BYTES)
        names = [e.filename for e in archive.infolist()]
        if len({n.lower() for n in names}) != len(names):
            raise SourceError(f"{path} is damaged: two files of one name in the archive")
        for name in (e.filename for e in entries):
            if name.startswith("/") or ".." in Path(name).parts or "\\" in name:
                raise UnsafeFileError(f"{path}: its member {name[:80]!r} would be written outside its folder")
            if not _MEMBER.fullmatch(name) and not trust:
                raise UnsafeFileError(
                    f"{path}: carries {name[:80]!r}, which is no part of a plain model; --trust-source allows it"
                )
        if "config.json" not in names:
            raise SourceError(f"{path} is not a Keras model: its archive has no config.json")
        damaged = archive.testzip()
        if damaged:
            raise SourceError(f"{path} is damaged: the checksum of {damaged} does not match")
        if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
            raise SourceError(f"{path}: its config.json is larger than {MAX_CONFIG_BYTES >> 20} MiB; no model's is")
        check_configuration(json.loads(archive.read("config.json")), path, trust=trust)
        weights = [n for n in names if n.endswith(".h5")]
        if not weights:
            raise SourceError(f"{path} holds no weights")
        for name in weights:
            with archive.open(name) as member:
                _check_hdf5(member, path, trust=trust, whole=False)


def _check_hdf5(source: Any, path: Path, *, trust: bool, whole: bool) -> None:
    with h5py.File(source, "r") as file:
        if whole:
            text = file.attrs.get("model_config")
            if text is None:
                raise SourceError(f"{path} holds weights without a model; save the whole model, not its weights alone")
            configuration = text.decode("utf-8") if isinstance(text, bytes) else str(text)
            check_configuration(json.loads(configuration), path, trust=trust)
        total = 0
        for name, item in _items(file):
            place = f"{path}: its {name[:80]!r}"
            if isinstance(item, (h5py.ExternalLink, h5py.SoftLink)):
                raise UnsafeFileError(f"{place} is a link; a model's weights stand in its own file")
            if isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise UnsafeFileError(f"{place} reads another file; a model's weights stand in its own file")
                if item.dtype.hasobject and item.size > 4096:
                    raise SourceError(f"{place} holds {item.size} objects, not numbers")
                total += int(item.size) * item.dtype.itemsize
                if total > MAX_UNPACKED_BYTES:
                    raise SourceError(f"{path} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB; no model does")


def _items(group: h5py.Group, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every link that is no group and every dataset; hard links back to a group end by depth."""
    if depth > 64:
        raise SourceError(f"{group.file.filename}: its groups nest deeper than 64 levels; the file is damaged")
    for key in group:
        link = group.get(key, getlink=True)
        name = f"{prefix}{key}"
        if not isinstance(link, h5py.HardLink):
            yield name, link
            continue
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _items(item, f"{name}/", depth + 1)
        else:
            yield name, item


def check_configuration(configuration: Any, path: Path, *, trust: bool) -> None:
    """Hold a model's configuration against what Keras' own layers need.

    Raises:
        SourceError: it is no configuration, or has sizes that no model has.
        UnsafeFileError: it names a class or function that could run code or read files, without `trust`.
    """
    if not isinstance(configuration, dict) or "class_name" not in configuration:
        raise SourceError(f"{path} is not a Keras model: its configuration names no class")
    waiting: list[Any] = [configuration]
    seen = 0
    while waiting:
        item = waiting.pop()
        seen += 1
        if seen > 2_000_000:
            raise SourceError(f"{path}: its configuration has more than two million entries; no model's has")
        if isinstance(item, dict):
            if not trust:
                _check_class(item, path)
            waiting.extend(value for key, value in item.items() if key not in _NO_SIZES)
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, int) and abs(item) >= MAX_SIZE:
            raise SourceError(f"{path}: its configuration asks for a size of {item}: not one that a model has")


def _check_class(item: dict[str, Any], path: Path) -> None:
    allowed = "--trust-source allows it"
    name = item.get("class_name")
    if isinstance(name, str) and name.rpartition(">")[2] in _RUNS_CODE:
        raise UnsafeFileError(f"{path}: has {_RUNS_CODE[name.rpartition('>')[2]]}; {allowed}")
    module = item.get("module")
    if name is None or module is None:
        return
    if not isinstance(module, str) or not _MODULE.fullmatch(module):
        raise UnsafeFileError(f"{path}: names {str(module)[:60]}.{str(name)[:60]}, no part of Keras; {allowed}")
    if name == "function" and not _FUNCTION_MODULE.fullmatch(module):
        raise UnsafeFileError(
            f"{path}: names the function {module}.{str(item.get('config'))[:60]}, which is no activation; {allowed}"
        )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
