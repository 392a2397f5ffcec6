"""Shows long work: a live table on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


@dataclass
class _Step:
    state: str
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    ok: bool = True


class Display:
    """A `Progress` for people; a context manager."""

    def __init__(self, *, quiet: bool, verbose: bool, logs: Path) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._verbose = verbose
        self._logs = logs
        self._steps: dict[str, _Step] = {}
        self._lock = threading.Lock()
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=8)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last state on the screen; with `-v`, print the converters' own output."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._verbose:
            self._verbose = False
            for log in sorted(self._logs.glob("*.log")):
                self._console.rule(log.name)
                self._console.print(log.read_text(encoding="utf-8", errors="replace"), markup=False, highlight=False)

    def update(self, name: str, state: str) -> None:
        """`name` is now in `state`."""
        with self._lock:
            step = self._steps.get(name)
            changed = step is None or step.state.split(" ")[0] != state.split(" ")[0]
            if step is None:
                step = self._steps[name] = _Step(state)
            elif step.state == "waiting":
                step.started = time.monotonic()
            step.state = state
            if changed and state != "waiting":
                self._plain(f"{name}: {state}")

    def finish(self, name: str, state: str, *, ok: bool) -> None:
        """`name` has ended."""
        with self._lock:
            step = self._steps.setdefault(name, _Step(state))
            step.state, step.ok, step.ended = state, ok, time.monotonic()
            self._plain(f"{name}: {state} ({step.ended - step.started:.1f} s)")

    def _plain(self, line: str) -> None:
        if self._live is None and not self._quiet:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for name, step in self._steps.items():
                seconds = (step.ended or time.monotonic()) - step.started
                mark: Spinner | Text = Spinner("dots")
                if step.ended is not None:
                    mark = Text("✓", style="green") if step.ok else Text("✗", style="red")
                elif step.state == "waiting":
                    mark = Text("·")
                table.add_row(mark, name, step.state, f"{seconds:.1f} s")
        return table
