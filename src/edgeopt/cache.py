"""Stage outputs by content: the same inputs, options and tool versions are computed once.

An entry is a folder `<key>/` with `files/` and `entry.json` (sha256 of each file, and the stage's record). It is
written beside its place and renamed, so two runs at once cannot tear it; it is verified on every read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_BYTES = 10 * 2**30
CHECKPOINTS = "training"


def default_root() -> Path:
    """Return `$EDGEOPT_CACHE`, or `edgeopt` in the user's cache folder."""
    if "EDGEOPT_CACHE" in os.environ:
        return Path(os.environ["EDGEOPT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeopt"


def key_of(parts: dict[str, Any]) -> str:
    """Return the sha256 of JSON-able parts, whatever order they are in."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; of a folder, over its files' names and digests in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    else:
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


class Cache:
    """A folder of entries, kept under `max_bytes` by dropping those longest unused."""

    def __init__(self, root: Path, max_bytes: int = MAX_BYTES) -> None:
        self.root = root
        self.max_bytes = max_bytes

    def get(self, key: str, out: Path) -> dict[str, Any] | None:
        """Copy an entry's file or folder to `out` and return its record; None where there is no sound entry."""
        entry = self._place(key)
        try:
            record: dict[str, Any] = json.loads((entry / "entry.json").read_bytes())
            source = entry / "files" / record["name"]
            source.stat()
            digest = record["sha256"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(entry, ignore_errors=True)  # else a damaged entry would keep its place for ever
            return None
        try:
            _copy(source, out)
            os.utime(entry)
        except (OSError, shutil.Error):
            _remove(out)
            return None
        if file_sha256(out) != digest:
            _remove(out)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        result: dict[str, Any] = record["record"]
        return result

    def put(self, key: str, path: Path, record: dict[str, Any]) -> None:
        """Keep a file or folder with its record; a full disk or a read-only cache only means that nothing is kept."""
        place = self._place(key)
        temporary: Path | None = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
            (temporary / "files").mkdir()
            _copy(path, temporary / "files" / path.name)
            entry = {"name": path.name, "sha256": file_sha256(path), "record": record, "made": time.time()}
            (temporary / "entry.json").write_text(json.dumps(entry))
            temporary.replace(place)
        except (OSError, shutil.Error):
            # Another run may have kept the same entry first; its content is the same.
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        self._trim()

    def drop(self, key: str) -> None:
        """Forget an entry, if it is there."""
        shutil.rmtree(self._place(key), ignore_errors=True)

    def entries(self) -> list[dict[str, Any]]:
        """Return what is kept, the latest used first: `key`, `name`, `stage`, `size_bytes`, `used` (seconds)."""
        found = []
        for entry in self.root.glob("??/*"):
            try:
                document = json.loads((entry / "entry.json").read_bytes())
                size = sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
                used = entry.stat().st_mtime
            except (OSError, ValueError):
                continue
            stage = document["record"].get("stage") if isinstance(document.get("record"), dict) else None
            found.append(
                {"key": entry.name, "name": document.get("name"), "stage": stage, "size_bytes": size, "used": used}
            )
        return sorted(found, key=lambda e: -float(e["used"]))

    def clear(self) -> int:
        """Remove every entry and every checkpoint; returns how many bytes that were."""
        places = [*self.root.glob("??/*"), *(self.root / CHECKPOINTS).glob("*")]
        total = sum(f.stat().st_size for p in places for f in p.rglob("*") if f.is_file())
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        return total

    def _place(self, key: str) -> Path:
        return self.root / key[:2] / key

    def _trim(self) -> None:
        entries = []
        with contextlib.suppress(OSError):
            for entry in self.root.glob("??/*"):
                size = sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
                entries.append((entry.stat().st_mtime, size, entry))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self.max_bytes:
                break
            shutil.rmtree(entry, ignore_errors=True)
            total -= size


def _copy(source: Path, out: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, out)
    else:
        shutil.copyfile(source, out)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
