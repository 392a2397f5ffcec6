"""CSV, TSV and JSON Lines to rows of named cells, each with its line as an editor counts it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core.errors import DataError

MAX_BYTES = 2**31
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One row: the line it begins on (the first line of the file is 1) and its cells by column."""

    line: int
    cells: dict[str, str]


def read_rows(path: Path) -> tuple[bytes, tuple[str, ...], list[Row]]:
    r"""Read a table.

    CSV has a header and RFC 4180 quotes, which may span lines. TSV has a header and no quoting: a cell is what stands
    between two tabs; the header may be missing if the first row is `text<TAB>integer` (as SST-2 comes). JSON Lines has
    one object per line, all with the same keys; numbers and booleans become text. Empty lines are skipped, a byte
    order mark is accepted, lines end in `\n`, `\r\n` or `\r` (in JSON Lines not the last).

    Returns:
        The file's bytes, the columns in their order, and the rows.

    Raises:
        DataError: names the line: binary, not UTF-8, empty, an empty or repeated column, a wrong number of cells,
            malformed quotes or JSON.
    """
    content = _read(path)
    text = _decode(content, path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        columns, rows = _json_rows(text, path)
    else:
        columns, rows = _delimited_rows(text, path)
    if not rows:
        raise DataError(f"{path}: the table has {'a header but no rows' if columns else 'no rows: it is empty'}")
    return content, columns, rows


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: the table is larger than 2 GiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(content: bytes, path: Path) -> str:
    position = content.find(b"\0")
    if position >= 0:
        line = content.count(b"\n", 0, position) + 1
        raise DataError(f"{path}: line {line}: a binary file, or UTF-16; expected a table in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark.
        start = error.start + (len(content) - len(error.object))
        line = content.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path}: line {line}: byte 0x{content[start]:02x} is not UTF-8; save the table as UTF-8"
        ) from error


def _delimited_rows(text: str, path: Path) -> tuple[tuple[str, ...], list[Row]]:
    records = _records(text, path)
    first = next(records, None)
    if first is None:
        return (), []
    line, header = first
    rows: list[Row] = []
    if path.suffix.lower() == ".tsv" and len(header) == 2 and _INTEGER.fullmatch(header[1].strip()):
        columns: tuple[str, ...] = ("text", "label")
        rows.append(Row(line, dict(zip(columns, header, strict=True))))
    else:
        columns = _header(header, f"{path}: line {line}")
    for line, cells in records:
        if len(cells) != len(columns):
            raise DataError(f"{path}: line {line}: {_count(len(cells), 'cell')} where the header has {len(columns)}")
        rows.append(Row(line, dict(zip(columns, cells, strict=True))))
    return columns, rows


def _records(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line each record begins on and its cells."""
    lines = io.StringIO(text, newline="")
    if path.suffix.lower() == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    begins = 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {begins}: malformed row: {error}") from error


def _header(cells: list[str], where: str) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in cells)
    for place, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{where}: column {place} has no name")
        if name in names[: place - 1]:
            raise DataError(f"{where}: column {name!r} stands twice")
    return names


def _json_rows(text: str, path: Path) -> tuple[tuple[str, ...], list[Row]]:
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    for line, record in enumerate(text.split("\n"), 1):
        if not record.strip():
            continue
        where = f"{path}: line {line}"
        cells = {key: _cell(value, key, where) for key, value in _json_object(record, where).items()}
        if not rows:
            columns = tuple(cells)
        if set(cells) != set(columns):
            odd = sorted(set(cells) ^ set(columns))[0]
            raise DataError(
                f"{where}: key {odd!r} is {'new' if odd in cells else 'missing'} compared with the first row"
            )
        rows.append(Row(line, cells))
    return columns, rows


def _json_object(record: str, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise DataError(f"{where}: key {twice!r} stands twice")
        return found

    try:
        value = json.loads(record, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _cell(value: Any, key: str, where: str) -> str:
    if key == "label" and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise DataError(f"{where}: label {json.dumps(value)[:40]} is neither an integer nor a name")
    if key in ("path", "text") and not isinstance(value, str):
        raise DataError(f"{where}: {key} {json.dumps(value)[:40]} is not a string")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
