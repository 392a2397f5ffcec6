"""Writes an output folder whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeopt.core.errors import OutputError
from edgeopt.scratch import ScratchFolder, sweep

MANIFEST = "manifest.json"
# What other verbs write into a bundle; it says nothing of the bundle that comes in its place.
COMPANIONS = frozenset({"eval.json", "bench.json", "gate.json", "report.html", "sensitivity.json", "sensitivity.svg"})
IGNORED = {".DS_Store", "Thumbs.db", "desktop.ini"}
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`; when the block ends without an error, it becomes `out` in one step.

    An older bundle in `out` is replaced. A process killed at any moment leaves the old folder or the new one.

    Raises:
        OutputError: `out` is a file, or a folder that holds something which edgeopt did not write; or the place
            cannot be written.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link at `out` itself
    _refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(_prefix(out), out.parent)
        scratch = ScratchFolder(_prefix(out), out.parent)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {_reason(error)}") from error
    with scratch as temporary:
        try:
            content = temporary / "bundle"
            content.mkdir()
            yield content
            _refuse_foreign(out)
            _sync(content)
            _replace(content, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {_reason(error)}") from error


def _refuse_foreign(out: Path) -> None:
    if out.is_symlink():
        raise OutputError(f"{out}: is a link; name the folder itself")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; -o names a folder")
    files = [p for p in out.rglob("*") if (p.is_symlink() or not p.is_dir()) and p.name not in IGNORED]
    present = {p.relative_to(out).as_posix() for p in files}
    if not present:
        return
    try:
        document = json.loads((out / MANIFEST).read_bytes())
        known = {MANIFEST, *COMPANIONS, *document["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{out}: is not empty and holds no edgeopt bundle; choose another folder") from error
    foreign = sorted(present - known)
    if foreign:
        raise OutputError(f"{out}: holds {foreign[0]}, which edgeopt did not write; move it or choose another folder")


def _prefix(out: Path) -> str:
    return f".{out.name}.edgeopt-"


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(new: Path, out: Path) -> None:
    """Put `new` in `out`'s place; an older `out` ends where `new` was."""
    if not out.exists():
        new.rename(out)
    elif not _exchange(new, out):
        # No atomic exchange on this system: for a moment neither is there, and the old one is beside.
        aside = new.with_name("old")
        out.rename(aside)
        new.rename(out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin":
        code = library.renamex_np(*paths, _RENAME_SWAP)
    elif hasattr(library, "renameat2"):
        code = library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    else:
        return False
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no space left on the disk"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{error.filename} is no folder"
    return error.strerror or str(error)
