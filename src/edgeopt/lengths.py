"""One bundle for each of several text lengths, so that a short text need not pay for a long one's padding."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt.context import Context
from edgeopt.core.errors import OutputError, UsageError
from edgeopt.pipeline import convert
from edgeopt.steps import Document, Plan, Source

INDEX = "lengths.json"
PREFIX = "length-"


def convert_lengths(source: Source, what: Plan, lengths: Sequence[int], out: Path, context: Context) -> Document:
    """Write `out/length-N`, a bundle of its own, for each length, and `out/lengths.json` that names them.

    A run that was stopped leaves the bundles that were finished, and no index.

    Args:
        source: a text model; its texts are cut or filled up to each length.
        what: formats, precisions, data.
        lengths: in tokens.
        out: the folder.
        context: of the work.

    Returns:
        `lengths`: per length, shortest first, its `bundle` and that bundle's `manifest`.

    Raises:
        OutputError: `out` holds something else.
        EdgeoptError: as `pipeline.convert`.
    """
    wanted = sorted(set(lengths))
    _refuse_other(out)
    (out / INDEX).unlink(missing_ok=True)
    found: list[dict[str, Any]] = []
    for length in wanted:
        folder = f"{PREFIX}{length}"
        context.progress.update("length", f"{length} tokens")
        manifest = convert(replace(source, shapes=((1, length),)), what, out / folder, context)
        found.append({"length": length, "bundle": folder, "manifest": manifest})
    context.progress.finish("length", f"{len(wanted)} bundles", ok=True)
    index = {"lengths": [{"length": f["length"], "bundle": f["bundle"]} for f in found]}
    temporary = out / f".{INDEX}.{os.getpid()}"
    temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    temporary.replace(out / INDEX)
    return {"lengths": found}


def parse_lengths(texts: Sequence[str]) -> tuple[int, ...]:
    """Return lengths in tokens.

    Raises:
        UsageError: one is no positive integer.
    """
    for text in texts:
        if not text.isdigit() or int(text) < 1:
            raise UsageError(f"--lengths {text!r}: expected numbers of tokens such as 32,128")
    return tuple(int(text) for text in texts)


def _refuse_other(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; -o names a folder")
    other = sorted(p.name for p in out.iterdir() if p.name != INDEX and not p.name.startswith((PREFIX, ".")))
    if other:
        raise OutputError(f"{out}: holds {other[0]}; lengths are written to a folder of their own")
