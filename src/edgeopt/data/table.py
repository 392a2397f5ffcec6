"""Tables of images or texts with labels: CSV, TSV and JSON Lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import DataError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.data.labels import class_index, read_labels
from edgeopt.data.source import Array, Sample, digest, settings_digest
from edgeopt.data.table_rows import Row, read_rows

LABELLED_TASKS = frozenset({"generic", "image-classification", "text-classification"})


@dataclass(frozen=True)
class _Entry:
    line: int
    item: str
    label: int | None
    slices: dict[str, str]


class Table:
    """Rows of `path,label` or `text,label`; every further column is a slice.

    `path` is relative to the table's folder and stays inside it. `label` is a class index or a label of the card; a
    task without class labels (object detection, sentence embedding, ...) needs no such column. A table with both
    `path` and `text` feeds texts if the card has a tokenizer.
    """

    kind = "table"

    def __init__(self, path: Path, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> None:
        """Read all rows and their labels; images and texts are read sample by sample.

        Args:
            path: a .csv, .tsv, .jsonl or .ndjson file.
            card: gives task, preprocessing and labels.
            inputs: the model's.
            base: the card's folder.

        Raises:
            DataError: names the row: no text file, a missing or repeated column, a wrong number of cells, a label out
                of range, a path that leaves the folder.
        """
        self.path = path
        self.labels = read_labels(card, base)
        content, columns, rows = read_rows(path)
        self._column = _item_column(columns, card, path)
        labelled = _has_labels(columns, card, path)
        self._entries = [self._entry(row, labelled) for row in rows]
        self._identity = digest(content, settings_digest(card, inputs, self.labels))
        self._images: _Images | None = None
        if self._column == "path":
            self._images = _Images(card, inputs, path.parent)
            self._encode: Callable[[str, str], dict[str, Array]] = self._images.read
        else:
            from edgeopt.data.text import TextEncoder

            texts = TextEncoder(card.preprocess, inputs, base)
            self._encode = texts.text
            self._identity = digest(self._identity, texts.identity)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        inputs = self._encode(entry.item, f"{self.path}: line {entry.line}")
        if self._column == "path":
            return Sample(inputs, entry.label, entry.item, entry.slices)
        return Sample(inputs, entry.label, f"line {entry.line}", entry.slices, entry.item)

    def fingerprint(self) -> str:
        """Return a sha256 over the table's content, the images' sizes and times or the tokenizer, and preprocessing."""
        images = self._images
        if images is None:
            return self._identity
        return digest(self._identity, *(images.identity(e.item, f"{self.path}: line {e.line}") for e in self._entries))

    def _entry(self, row: Row, labelled: bool) -> _Entry:
        where = f"{self.path}: line {row.line}"
        cells = dict(row.cells)
        item = cells.pop(self._column)
        label = None
        if labelled:
            text = cells.pop("label")
            if not text.strip():
                raise DataError(f"{where}: the label is empty")
            label = class_index(text, self.labels, where)
        if self._column == "path":
            _check_path(item, where)
        return _Entry(row.line, item, label, cells)


class _Images:
    def __init__(self, card: ModelCard, inputs: tuple[TensorSpec, ...], folder: Path) -> None:
        from edgeopt.data.image_file import read_file
        from edgeopt.data.preprocess import ImagePreprocessor

        self._preprocess = ImagePreprocessor(card.preprocess, inputs)
        self._read_file = read_file
        self._folder = folder.resolve()

    def read(self, item: str, where: str) -> dict[str, Array]:
        content = self._read_file(self._inside(item, where), where)
        return self._preprocess.encoded(content, f"{where}: {item}")

    def identity(self, item: str, where: str) -> str:
        path = self._inside(item, where)
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{where}: {path}: {error.strerror}") from error
        return f"{item}:{status.st_size}:{status.st_mtime_ns}"

    def _inside(self, item: str, where: str) -> Path:
        try:
            path = (self._folder / item).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links
            raise DataError(f"{where}: path {item!r} cannot be followed: {error}") from error
        if not path.is_relative_to(self._folder):
            raise DataError(f"{where}: path {item!r} is a link that leads out of the table's folder")
        return path


def _item_column(columns: tuple[str, ...], card: ModelCard, path: Path) -> str:
    present = [c for c in ("path", "text") if c in columns]
    if not present:
        raise DataError(f"{path}: line 1: no column path or text; the columns are {', '.join(columns)}")
    return present[0] if len(present) == 1 else ("text" if card.preprocess.tokenizer else "path")


def _has_labels(columns: tuple[str, ...], card: ModelCard, path: Path) -> bool:
    if "label" in columns:
        return True
    if card.task not in LABELLED_TASKS:
        return False
    hint = did_you_mean("label", columns)
    raise DataError(f"{path}: line 1: no column label" + hint.replace("; known:", "; the columns are"))


def _check_path(item: str, where: str) -> None:
    if not item.strip():
        raise DataError(f"{where}: the path is empty")
    path = PurePosixPath(item.replace("\\", "/"))
    encodable = "\0" not in item and not re.search(r"[\ud800-\udfff]", item)
    if not encodable or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", item):
        raise DataError(f"{where}: path {item!r} leads out of the table's folder; give one relative to it")
