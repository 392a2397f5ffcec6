"""The bundle's own description, and the logs it keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeopt.bundle.folder import MANIFEST
from edgeopt.cache import file_sha256

TOKENIZER = "tokenizer.json"


def keep_logs(failures: list[dict[str, Any]], bundle: Path, out: Path) -> None:
    """Copy the failed workers' own output into the bundle, where it outlives this run; `out` is its later place."""
    for failure in failures:
        log = Path(failure["log"]) if failure["log"] else None
        if log is not None and log.is_file():
            (bundle / "logs").mkdir(exist_ok=True)
            shutil.copyfile(log, bundle / "logs" / log.name)
            failure["log"] = str(out / "logs" / log.name)


def keep_beside(work: Path, bundle: Path) -> None:
    """Move what an app needs beside the artifacts, such as a tokenizer, from the working folder into the bundle."""
    for file in sorted((work / "beside").glob("*")):
        shutil.copyfile(file, bundle / file.name)


def write_manifest(bundle: Path, document: dict[str, Any]) -> None:
    """Write `manifest.json`, with size and sha256 of every file beside it under `files`."""
    files = [p for p in sorted(bundle.rglob("*")) if p.is_file()]
    document["files"] = {
        p.relative_to(bundle).as_posix(): {"size_bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files
    }
    (bundle / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
