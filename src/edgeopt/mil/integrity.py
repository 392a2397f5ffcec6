"""What can be checked of a package before anything of it is executed.

A `.mlpackage` carries no checksum of its own. `seal` writes the SHA-256 of the program and of each weight file into the
model's metadata; where such a seal is present it must match. A tool that changes a sealed package keeps its metadata:
the program is then another one, and the seal says nothing about its weights. Without a seal the headers of the weight
blobs are still checked: offset, marker, type and length of every blob against what the program declares.

Blob layout: a 64-byte file header (count, version), then for each blob, at the offset the program names, 64 bytes of
metadata (marker 0xDEADBEEF, type, length, data offset, padding bits) and its data.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.message import DecodeError

from edgeopt.core.errors import ArtifactError

SEAL_KEY = "edgeopt.sha256."
PROGRAM_KEY = "edgeopt.program.sha256"
_MARKER = 0xDEADBEEF
_METADATA = struct.Struct("<IIQQQ")
_HEADER_BYTES = 64

_DATA = MIL_pb2.DataType
# Declared type: (number of the type in a blob, bits of one element)
_BLOB_TYPES: dict[int, tuple[int, int]] = {
    _DATA.FLOAT16: (1, 16),
    _DATA.FLOAT32: (2, 32),
    _DATA.UINT8: (3, 8),
    _DATA.INT8: (4, 8),
    _DATA.INT16: (6, 16),
    _DATA.UINT16: (7, 16),
    _DATA.INT4: (8, 4),
    _DATA.UINT1: (9, 1),
    _DATA.UINT2: (10, 2),
    _DATA.UINT4: (11, 4),
    _DATA.UINT3: (12, 3),
    _DATA.UINT6: (13, 6),
    _DATA.INT32: (14, 32),
    _DATA.UINT32: (15, 32),
}


def package_items(path: Path) -> dict[str, Path]:
    """Return the files and folders that a package's manifest names, by their name inside `Data`.

    Raises:
        ArtifactError: the manifest is missing, damaged, incomplete, or names something outside the package.
    """
    manifest = path / "Manifest.json"
    if not path.is_dir() or not manifest.is_file():
        raise ArtifactError(f"{path} is not an .mlpackage: it has no Manifest.json")
    try:
        record = json.loads(manifest.read_text("utf-8"))
        entries = record["itemInfoEntries"]
        names = [entry["path"] for entry in entries.values()]
        root = entries[record["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{manifest} is damaged ({error}); copy or export the package again") from error
    data = (path / "Data").resolve()
    items = {}
    for name in names:
        target = _inside(data, str(name), manifest)
        if not target.exists():
            raise ArtifactError(f"{manifest} names {name}, which is not in the package; copy it completely")
        items[str(name)] = target
    items[""] = items[root]
    return items


def _inside(data: Path, name: str, named_by: Path) -> Path:
    """Resolve a relative name inside `data`, links included.

    Raises:
        ArtifactError: it leads outside.
    """
    relative = PurePosixPath(name)
    target = (data / relative).resolve()
    if relative.is_absolute() or ".." in relative.parts or not target.is_relative_to(data):
        raise ArtifactError(f"{named_by} names {name!r}, which lies outside the package; it is not opened")
    return target


def read_spec(path: Path, items: dict[str, Path]) -> Any:
    """Parse the root model of a package.

    Raises:
        ArtifactError: the file is truncated or is no Core ML model.
    """
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(items[""].read_bytes())
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"the model specification in {path} is damaged or truncated ({error})") from error
    if spec.WhichOneof("Type") is None:
        raise ArtifactError(f"the model specification in {path} is truncated: it holds no model")
    return spec


def weights_folder(path: Path, items: dict[str, Path]) -> Path | None:
    """Return the folder of weight files, None where the package has none."""
    folders = [item for name, item in items.items() if name and item.is_dir()]
    for folder in folders:
        for file in folder.rglob("*"):
            if not file.resolve().is_relative_to(path.resolve()):
                raise ArtifactError(f"{file} is a link that leads outside the package; it is not opened")
    return next((folder for folder in folders if folder.name == "weights"), folders[0] if folders else None)


def _values(block: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of everything a block reads from a weight file, nested blocks included."""
    for op in block.operations:
        here = f"{place}/{op.outputs[0].name if op.outputs else op.type}"
        values = list(op.attributes.values())
        for argument in op.inputs.values():
            values += [b.value for b in argument.arguments if b.WhichOneof("binding") == "value"]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                yield here, value
        for nested in op.blocks:
            yield from _values(nested, here)


def check_blobs(path: Path, spec: Any, folder: Path | None) -> None:
    """Check the header of every weight blob the program reads.

    Raises:
        ArtifactError: names the file, the constant and what does not fit.
    """
    for function, body in spec.mlProgram.functions.items():
        for place, value in _values(body.block_specializations[body.opset], function):
            reference = value.blobFileValue
            where = f"weight {place} of {path}"
            name = reference.fileName.removeprefix("@model_path/")
            if folder is None:
                raise ArtifactError(f"{where} is read from {name}, but the package has no weights folder")
            file = _inside(folder.parent, name, path)
            if not file.is_file():
                raise ArtifactError(f"{where} is read from {name}, which is missing; copy the package completely")
            _check_blob(file, reference.offset, value.type.tensorType, where)


def _check_blob(file: Path, offset: int, declared: Any, where: str) -> None:
    size = file.stat().st_size
    if offset < _HEADER_BYTES or offset % 64 or offset + _HEADER_BYTES > size:
        raise ArtifactError(f"{where} starts at byte {offset} of {file.name}, which has {size}; the file is truncated")
    with file.open("rb") as stream:
        stream.seek(offset)
        marker, kind, length, start, padding = _METADATA.unpack(stream.read(_METADATA.size))
    if marker != _MARKER:
        raise ArtifactError(f"{where} has no blob header at byte {offset} of {file.name}; the file is damaged")
    if start < offset + _HEADER_BYTES or start + length > size:
        raise ArtifactError(f"{where} ends at byte {start + length} of {file.name}, which has {size}; it is truncated")
    expected, bits = _BLOB_TYPES.get(declared.dataType, (kind, 0))
    if kind != expected:
        raise ArtifactError(
            f"{where} is declared as type {expected} but stored as {kind} in {file.name}; it is damaged"
        )
    elements = 1
    for dimension in declared.dimensions:
        elements *= dimension.constant.size
    held = 8 * length - (padding if bits < 8 else 0)
    if bits and held != elements * bits:
        raise ArtifactError(f"{where} needs {elements * bits} bits, but {file.name} holds {held}; the file is damaged")


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _program_digest(spec: Any) -> str:
    return hashlib.sha256(spec.mlProgram.SerializeToString(deterministic=True)).hexdigest()


def check_seal(path: Path, spec: Any, folder: Path | None) -> bool:
    """Compare the weight files with the seal in the model's metadata; return whether there is one of this program.

    Raises:
        ArtifactError: a file's content is not what was sealed.
    """
    user = spec.description.metadata.userDefined
    sealed = {key.removeprefix(SEAL_KEY): value for key, value in user.items() if key.startswith(SEAL_KEY)}
    if PROGRAM_KEY in user and user[PROGRAM_KEY] != _program_digest(spec):
        return False
    for name, digest in sealed.items():
        if folder is None:
            raise ArtifactError(f"{path} is sealed with a weight file {name}, but has no weights folder")
        file = _inside(folder, name, path)
        if not file.is_file() or _digest(file) != digest:
            raise ArtifactError(f"weight file {name} of {path} is not the one it was sealed with; export it again")
    return bool(sealed)


def seal(path: Path) -> None:
    """Write the SHA-256 of a package's program and weight files into its metadata, so that `load_package` checks them.

    Raises:
        ArtifactError: the package is damaged.
    """
    items = package_items(path)
    spec = read_spec(path, items)
    folder = weights_folder(path, items)
    user = spec.description.metadata.userDefined
    for key in [key for key in user if key.startswith(SEAL_KEY)]:
        del user[key]
    user[PROGRAM_KEY] = _program_digest(spec)
    for file in sorted(folder.rglob("*")) if folder else []:
        if file.is_file() and folder is not None:
            user[SEAL_KEY + file.relative_to(folder).as_posix()] = _digest(file)
    target = items[""]
    temporary = target.with_name(target.name + ".sealing")
    temporary.write_bytes(spec.SerializeToString())
    temporary.replace(target)
