"""Reads a bundle and what other verbs have put beside its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.bundle.folder import MANIFEST
from edgeopt.core.errors import OutputError, UsageError

Document = dict[str, Any]
REQUIRED = ("format", "precision", "path", "size_bytes", "sha256", "parity")


@dataclass(frozen=True)
class Bundle:
    """A folder that `edgeopt convert` wrote.

    Attributes:
        folder: where it is.
        manifest: its description.
    """

    folder: Path
    manifest: Document

    @property
    def artifacts(self) -> list[Document]:
        """The manifest's records."""
        found: list[Document] = self.manifest["artifacts"]
        return found

    def path(self, artifact: Document) -> Path:
        """Return an artifact's file."""
        return self.folder / str(artifact["path"])

    def find(self, name: str) -> Document | None:
        """Return the artifact called `FORMAT/PRECISION`, or None."""
        return next((a for a in self.artifacts if artifact_name(a) == name), None)

    def companion(self, name: str) -> Document | None:
        """Return a document that another verb wrote into the folder; None where there is none.

        Raises:
            UsageError: it is damaged.
        """
        path = self.folder / name
        return read_document(path) if path.is_file() else None


def artifact_name(artifact: Document) -> str:
    """Return `FORMAT/PRECISION`."""
    return f"{artifact['format']}/{artifact['precision']}"


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises:
        UsageError: no folder, no manifest in it, or one that edgeopt did not write.
    """
    if folder.name == MANIFEST and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{folder}: {'no such folder' if not folder.exists() else 'is a file, not a bundle folder'}")
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder}: holds no {MANIFEST}; a bundle is what edgeopt convert writes")
    manifest = read_document(path)
    model, artifacts = manifest.get("model"), manifest.get("artifacts")
    sound = isinstance(model, dict) and isinstance(model.get("name"), str) and isinstance(artifacts, list)
    if not sound or not all(isinstance(a, dict) and all(k in a for k in REQUIRED) for a in artifacts or []):
        raise UsageError(f"{path}: is no manifest of edgeopt convert")
    for artifact in artifacts or []:
        name = str(artifact["path"])
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UsageError(f"{path}: artifact {name!r} leads out of the bundle")
    return Bundle(folder, manifest)


def recorded(artifact: Path) -> Document | None:
    """Return what the manifest beside a file says of it; None where there is none, or it tells of others."""
    try:
        document = json.loads((artifact.parent / MANIFEST).read_bytes())
        return next((a for a in document["artifacts"] if a["path"] == artifact.name), None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_document(path: Path) -> Document:
    """Read one JSON object.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is damaged: {str(error)[:80]}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that at any moment it is the old one or the new one.

    Raises:
        OutputError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
