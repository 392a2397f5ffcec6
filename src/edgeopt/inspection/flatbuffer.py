"""Reads FlatBuffers without generated code, checking every offset: a damaged file raises ArtifactError, nothing else.

The format: https://flatbuffers.dev/internals. A table begins with a signed offset to its vtable, which gives the place
of each field (a slot, numbered in the order of the schema), or 0 where the field has its default.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgeopt.core.errors import ArtifactError


@dataclass(frozen=True)
class Buffer:
    """Bytes of a FlatBuffers file, with the name that errors give it."""

    data: memoryview
    name: str

    def unpack(self, form: str, at: int) -> int | float:
        """Read one little-endian number.

        Raises:
            ArtifactError: it lies outside the file.
        """
        if at < 0 or at + struct.calcsize(form) > len(self.data):
            raise self.damaged(at)
        value: int | float = struct.unpack_from(form, self.data, at)[0]
        return value

    def integer(self, form: str, at: int) -> int:
        """Read one little-endian integer."""
        return int(self.unpack(form, at))

    def damaged(self, at: int) -> ArtifactError:
        """Return the error that the file breaks off or points outside itself."""
        return ArtifactError(f"{self.name} is damaged: it refers to byte {at} of {len(self.data)}; make it again")

    def root(self, at: int = 0) -> Table:
        """Return the table that the offset at `at` names."""
        return Table(self, at + self.integer("<I", at))


@dataclass(frozen=True)
class Table:
    """One table of a FlatBuffers file."""

    buffer: Buffer
    at: int

    def field(self, slot: int) -> int | None:
        """Return where field `slot` lies, or None if it has its default."""
        vtable = self.at - self.buffer.integer("<i", self.at)
        size = self.buffer.integer("<H", vtable)
        if 4 + 2 * slot + 2 > size:
            return None
        offset = self.buffer.integer("<H", vtable + 4 + 2 * slot)
        return self.at + offset if offset else None

    def integer(self, slot: int, form: str, default: int = 0) -> int:
        """Return an integer field; `form` is a struct code such as `<i`."""
        at = self.field(slot)
        return default if at is None else self.buffer.integer(form, at)

    def table(self, slot: int) -> Table | None:
        """Return a nested table (or the value of a union), or None if it is not set."""
        at = self.field(slot)
        return None if at is None else self.buffer.root(at)

    def text(self, slot: int) -> str:
        """Return a string field."""
        return bytes(self.bytes(slot)).decode("utf-8", "replace")

    def bytes(self, slot: int) -> memoryview:
        """Return a vector of bytes."""
        start, length = self._vector(slot, 1)
        return self.buffer.data[start : start + length]

    def integers(self, slot: int, form: str = "<i") -> tuple[int, ...]:
        """Return a vector of integers."""
        width = struct.calcsize(form)
        start, length = self._vector(slot, width)
        return struct.unpack_from(f"<{length}{form[-1]}", self.buffer.data, start) if length else ()

    def floats(self, slot: int) -> tuple[float, ...]:
        """Return a vector of 32-bit floats."""
        start, length = self._vector(slot, 4)
        return struct.unpack_from(f"<{length}f", self.buffer.data, start) if length else ()

    def tables(self, slot: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        start, length = self._vector(slot, 4)
        for index in range(length):
            yield self.buffer.root(start + 4 * index)

    def _vector(self, slot: int, width: int) -> tuple[int, int]:
        at = self.field(slot)
        if at is None:
            return 0, 0
        start = at + self.buffer.integer("<I", at)
        length = self.buffer.integer("<I", start)
        if start + 4 + length * width > len(self.buffer.data):
            raise self.buffer.damaged(start + 4 + length * width)
        return start + 4, length


def item(values: list[Table], index: int, what: str, buffer: Buffer) -> Table:
    """Return element `index` of a list that the file refers to.

    Raises:
        ArtifactError: there is none.
    """
    if not 0 <= index < len(values):
        raise ArtifactError(f"{buffer.name} is damaged: it refers to {what} {index} of {len(values)}; make it again")
    return values[index]
