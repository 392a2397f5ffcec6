"""What every zip archive of a model must be before anything in it is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgeopt.core.errors import SourceError

MAX_RATIO = 200
FREE_RATIO_BYTES = 16 * 2**20
"""Weights hardly compress; what is this small may."""


def refuse_bombs(archive: zipfile.ZipFile, path: Path, most_bytes: int) -> None:
    """Refuse an archive by the sizes that it states, which reading holds it to.

    Raises:
        SourceError: it unpacks to more than `most_bytes`, or a member to more than weights ever do.
    """
    entries = [e for e in archive.infolist() if not e.is_dir()]
    if sum(e.file_size for e in entries) > most_bytes:
        raise SourceError(f"{path}: unpacks to more than {most_bytes >> 30} GiB; no model for a device does")
    for entry in entries:
        if entry.file_size > max(MAX_RATIO * entry.compress_size, FREE_RATIO_BYTES):
            raise SourceError(
                f"{path}: its {entry.filename[:80]!r} would unpack from {entry.compress_size} to {entry.file_size} "
                "bytes; no weights do"
            )
