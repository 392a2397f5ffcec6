from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeopt.worker import Limits, Worker

ROOT = Path(__file__).parents[1]
MARKER = "EDGEOPT_TEST_RUN"


def processes_marked(mark: str) -> list[psutil.Process]:
    """Return the live processes whose environment carries `mark`, wherever they stand in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def assert_all_end(mark: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    told = [str(p) for p in left]
    for process in left:
        process.kill()
    assert not told, f"processes left behind: {told}"


@dataclass(frozen=True)
class Ran:
    """What a finished `edgeopt` command left."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """The one document on standard output; anything beside it is an error."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one error line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err, self.err
        return lines[0].removeprefix("error: ")


@dataclass(frozen=True)
class Command:
    """The installed `edgeopt`, run as users run it; every process it starts can be found again by a mark."""

    environment: dict[str, str]
    folder: Path

    def with_environment(self, **added: str) -> Command:
        return Command(self.environment | added, self.folder)

    def start(self, *arguments: object) -> tuple[subprocess.Popen[str], str]:
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("edgeopt")), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment | {MARKER: mark},
            start_new_session=True,
        )
        return process, mark

    def leftovers(self) -> list[str]:
        """Return what runs left in the temporary folder that is the command's own."""
        return sorted(p.name for p in Path(self.environment["TMPDIR"]).iterdir())

    def __call__(self, *arguments: object, timeout: float = 240) -> Ran:
        started = time.monotonic()
        process, mark = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
            assert_all_end(mark)
        return Ran(process.returncode, out, err, time.monotonic() - started)


def _environment(cache: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEOPT_", "TORCH_FORCE"))}
    return environment | {"EDGEOPT_CACHE": str(cache), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def edgeopt(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command with one cache for the whole session."""
    return Command(_environment(tmp_path_factory.mktemp("cache")), tmp_path_factory.mktemp("cwd"))


@pytest.fixture
def fresh_edgeopt(tmp_path: Path) -> Command:
    """The command with an empty cache and its own temporary folder."""
    temporary = tmp_path / "tmpdir"
    temporary.mkdir()
    return Command(_environment(tmp_path / "own-cache") | {"TMPDIR": str(temporary)}, tmp_path)


@pytest.fixture(scope="session")
def format_worker() -> Iterator[Callable[[str], Worker]]:
    """One worker per format for the whole session: its converter is imported once."""
    running: dict[str, Worker] = {}

    def worker(name: str) -> Worker:
        if name not in running:
            running[name] = Worker(threads=1, limits=Limits(timeout_s=200))
        return running[name]

    yield worker
    for process in running.values():
        process.close()


@pytest.fixture(scope="session")
def no_orphans() -> Callable[..., None]:
    return assert_all_end


@pytest.fixture(scope="session")
def marked_processes() -> Callable[[str], list[psutil.Process]]:
    return processes_marked


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Write a Python file that builds a model, in a folder of its own."""

    def write(name: str, code: str) -> Path:
        path = tmp_path_factory.mktemp(name) / f"{name}.py"
        path.write_text(f"import torch\nfrom torch import nn\n\n{code}")
        return path

    return write


TINY = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
"""


@pytest.fixture(scope="session")
def tiny(write_model: Callable[[str, str], Path]) -> list[str]:
    """Arguments that name a model which converts in seconds."""
    return [f"{write_model('tiny', TINY)}:build", "--input-shape", "1,1,8,8"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep every test away from the user's cache."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache-of-this-test"))
    return
