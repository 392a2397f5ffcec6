"""Temporary folders that the next run removes when their owner was killed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import shutil
import tempfile
from pathlib import Path
from typing import IO

LOCK = ".lock"


class ScratchFolder:
    """A new folder in `parent` with a lock by which others know that its owner is alive.

    Attributes:
        path: of the folder; `.lock` in it is not for use.

    Raises:
        OSError: `parent` cannot be written.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        self.path, self._lock = _locked_folder(prefix, parent or Path(tempfile.gettempdir()))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(prefix: str, parent: Path | None = None) -> None:
    """Remove folders of that prefix whose owners are dead."""
    for leftover in (parent or Path(tempfile.gettempdir())).glob(f"{glob.escape(prefix)}*"):
        # "a" makes the lock anew where its owner was killed before making it, or while deleting the folder.
        with contextlib.suppress(OSError), (leftover / LOCK).open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)


def _locked_folder(prefix: str, parent: Path) -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = folder / LOCK
        with contextlib.suppress(FileNotFoundError):
            handle = lock.open("w")
            fcntl.flock(handle, fcntl.LOCK_EX)
            if lock.exists():
                return folder, handle
            handle.close()
        # Between its making and its locking another run took it for a leftover: make another.
