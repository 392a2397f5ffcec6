"""`<class>/<image>` folders, on disk or inside a .zip that is read in place."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import DataError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.data.image_file import MAX_FILE_BYTES, SUFFIXES, read_file
from edgeopt.data.labels import INTEGER, in_range, read_labels
from edgeopt.data.preprocess import ImagePreprocessor
from edgeopt.data.source import Sample, digest, settings_digest


class ImageFolder:
    """Images sorted into one folder per class.

    The first folder of an image's path is its class: a label of the card by name, an index if every folder's name is
    an integer, else its place among the sorted names. Images that lie in no folder at all have no label. Hidden files,
    `__MACOSX` and files that are no images by their suffix are left out. In a .zip, one folder around everything is
    left out of the path.
    """

    kind = "image-folder"

    def __init__(self, path: Path, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> None:
        """List the images and settle their classes; no image is read.

        Args:
            path: a folder or a .zip file.
            card: gives preprocessing and labels.
            inputs: the model's.
            base: the card's folder.

        Raises:
            DataError: no images, a damaged .zip, or folders that do not fit the card's labels.
        """
        self.path = path
        self._preprocess = ImagePreprocessor(card.preprocess, inputs)
        self._files: _Files = _Folder(path) if path.is_dir() else _Archive(path)
        self._names = sorted(n for n in self._files.names() if _is_image(n))
        if not self._names:
            raise DataError(f"{path}: no images in it; expected <class>/<image>.jpg, .png, .bmp, .webp or .tiff")
        classes = self._classes()
        self.labels, self._index = _assign(classes, read_labels(card, base), str(path))
        self._settings = settings_digest(card, inputs, self.labels)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        where = f"{self.path}: {name}"
        inputs = self._preprocess.encoded(self._files.read(name, where), where)
        return Sample(inputs, self._index[_class(name)] if self._index else None, name)

    def fingerprint(self) -> str:
        """Return a sha256 over names, sizes and times (in a .zip: checksums), labels and preprocessing."""
        return digest(self._settings, *(f"{n}:{self._files.identity(n)}" for n in self._names))

    def _classes(self) -> list[str]:
        loose = [n for n in self._names if "/" not in n]
        if loose and len(loose) < len(self._names):
            raise DataError(f"{self.path}: {loose[0]} lies beside the class folders; move it into one")
        return [] if loose else sorted({_class(n) for n in self._names})


def _assign(
    classes: list[str], labels: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """Return the class names and the index that each folder stands for."""
    if not classes:
        return labels, {}
    if labels is not None and set(classes) & set(labels):
        if strange := [c for c in classes if c not in labels]:
            raise DataError(f"{where}: folder {strange[0]!r} is no label of the card{did_you_mean(strange[0], labels)}")
        return labels, {c: labels.index(c) for c in classes}
    if all(INTEGER.fullmatch(c) for c in classes):
        return labels, {c: in_range(int(c), labels, f"{where}: folder {c}") for c in classes}
    if labels is not None and len(labels) != len(classes):
        raise DataError(
            f"{where}: the {len(classes)} class folders ({classes[0]!r}, ...) are not named by any of the card's "
            f"{len(labels)} labels ({labels[0]!r}, ...): name the folders by label or by class index"
        )
    return labels or tuple(classes), {c: i for i, c in enumerate(classes)}


class _Files(Protocol):
    def names(self) -> list[str]: ...

    def read(self, name: str, where: str) -> bytes: ...

    def identity(self, name: str) -> str: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()
        for folder, inner, files in os.walk(self._path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # links may run in a circle
                inner.clear()
                continue
            seen.add(real)
            start = Path(folder).relative_to(self._path)
            found += [(start / name).as_posix() for name in files]
        return found

    def read(self, name: str, where: str) -> bytes:
        return read_file(self._path / name, where)

    def identity(self, name: str) -> str:
        try:
            status = (self._path / name).stat()
        except OSError as error:
            raise DataError(f"{self._path / name}: cannot be read: {error.strerror}") from error
        return f"{status.st_size}:{status.st_mtime_ns}"


class _Archive:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{path}: not a readable .zip: {error}") from error
        members = {i.filename: i for i in self._zip.infolist() if not i.is_dir()}
        self._members = _without_root({n: i for n, i in members.items() if _is_image(n)})

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str, where: str) -> bytes:
        member = self._members[name]
        if member.file_size > MAX_FILE_BYTES:
            raise DataError(f"{where}: unpacks to more than {MAX_FILE_BYTES >> 20} MiB; is it an image?")
        try:
            return self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{where}: cannot be unpacked: {error}") from error

    def identity(self, name: str) -> str:
        member = self._members[name]
        return f"{member.file_size}:{member.CRC:08x}"


def _without_root(members: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    roots = {_class(n) for n in members}
    if len(roots) == 1 and all(n.count("/") >= 2 for n in members):
        skip = len(roots.pop()) + 1
        return {n[skip:]: i for n, i in members.items()}
    return members


def _class(name: str) -> str:
    return name.partition("/")[0]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden
