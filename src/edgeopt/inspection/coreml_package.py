"""The files of a Core ML package: a manifest that names the specification, and a blob file with the weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from edgeopt.core.errors import ArtifactError
from edgeopt.inspection.record import BITS, dtype_bytes

_BLOB_SENTINEL = 0xDEADBEEF


def find_specification(path: Path) -> Path:
    """Return the specification file of a package, which its manifest names.

    Raises:
        ArtifactError: the manifest is missing, damaged, or points outside the package.
    """
    if path.is_file():
        return path
    manifest = path / "Manifest.json"
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
        item = document["itemInfoEntries"][document["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a Core ML package: its Manifest.json is missing or damaged") from error
    parts = Path(str(item)).parts
    if not parts or ".." in parts or Path(str(item)).is_absolute() or "\0" in str(item):
        raise ArtifactError(f"{path}: its Manifest.json points outside the package")
    found = path / "Data" / str(item)
    if not found.is_file():
        raise ArtifactError(f"{path} is damaged: {found} is missing; make it again")
    return found


class WeightFile:
    """The blob file of a package: a header of 64 bytes, then one 64-byte record before each blob."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "weights" / "weight.bin"
        self.notes: list[str] = []
        self._data = b""
        if self.path.is_file() and not self.path.is_symlink():
            self._data = self.path.read_bytes()

    def check(self, value: Any, dtype: str, elements: int, name: str) -> None:
        """Check that a value stored in the file is there, of the size that its type says."""
        if value is None or value.WhichOneof("value") != "blobFileValue":
            return
        blob = value.blobFileValue
        if not blob.fileName.endswith("weights/weight.bin"):
            raise ArtifactError(
                f"{self.path.parent}: constant {name!r} lies in {blob.fileName[:100]!r}, not in the package"
            )
        if blob.offset + 64 > len(self._data):
            raise self._damaged(name, blob.offset)
        sentinel, _, size, start = struct.unpack_from("<IIQQ", self._data, blob.offset)
        if sentinel != _BLOB_SENTINEL or start + size > len(self._data):
            raise self._damaged(name, blob.offset)
        if dtype in BITS and size < dtype_bytes(dtype, elements):
            raise self._damaged(name, blob.offset)

    def _damaged(self, name: str, offset: int) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged: constant {name!r} is not at byte {offset}; make it again")
