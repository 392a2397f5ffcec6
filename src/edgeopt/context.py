"""What every command's work shares: limits, cache, logs, progress and the way to stop it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgeopt.cache import Cache, default_root
from edgeopt.worker import Limits


class Progress(Protocol):
    """Told what each piece of work is doing; called from several threads."""

    def update(self, name: str, state: str) -> None:
        """`name` is now in `state` (a few words)."""
        ...

    def finish(self, name: str, state: str, *, ok: bool) -> None:
        """`name` has ended."""
        ...


class Silent:
    """Shows nothing."""

    def update(self, name: str, state: str) -> None:
        """Ignore."""

    def finish(self, name: str, state: str, *, ok: bool) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Context:
    """How work is done, as opposed to what.

    Attributes:
        limits: of each worker.
        jobs: workers at once.
        cache: None where nothing is to be kept.
        logs: folder for the workers' own output.
        progress: where steps are shown.
        cancel: set to stop everything.
    """

    logs: Path
    limits: Limits = field(default_factory=Limits)
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    cache: Cache | None = field(default_factory=lambda: Cache(default_root()))
    progress: Progress = field(default_factory=Silent)
    cancel: threading.Event = field(default_factory=threading.Event)
