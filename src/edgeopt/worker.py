"""Runs a third-party converter or runtime in a process of its own, so that its crash is one line of ours.

`call("package.module:function", {...})` starts `python -m edgeopt.worker` in a new process group, with stdout and
stderr in a log file. The function gets the arguments as keywords and returns JSON types. Jobs come by the worker's
standard input. A second pipe is its lifeline: when the parent dies, however it dies, the worker's whole group ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeopt.core import errors
from edgeopt.core.errors import CancelledRunError, EdgeoptError, OutputError, WorkerError
from edgeopt.scratch import ScratchFolder

POLL_S = 0.05
MEMORY_POLL_S = 0.25
_progress_file: Path | None = None


@dataclass(frozen=True)
class Limits:
    """What one worker may use: wall seconds, and resident bytes summed over its process group."""

    timeout_s: float = 1800.0
    memory_bytes: int = int(psutil.virtual_memory().total * 0.8)


class Worker:
    """A process that performs calls in turn; a context manager.

    A crash, a limit or a cancellation ends the process; the next call starts a new one. Several calls of one
    converter share its imports.

    Args:
        threads: OpenMP threads.
        environment: variables added to the worker's.
        limits: time of each call, and memory.
        cancel: when set, the process is killed.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        environment: dict[str, str] | None = None,
        limits: Limits | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._threads = threads
        self._environment = environment or {}
        self._limits = limits or Limits()
        self._cancel = cancel or threading.Event()
        self._scratch = ScratchFolder("edgeopt-worker-")
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._calls = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the process and remove its temporary files."""
        self._kill()
        self._scratch.remove()

    def call(
        self,
        task: str,
        arguments: dict[str, Any],
        *,
        what: str,
        log: Path,
        failure: type[EdgeoptError] = WorkerError,
        progress: Callable[[str], None] | None = None,
    ) -> Any:
        """Run `task` and return what it returns.

        Args:
            task: `package.module:function`.
            arguments: keywords of JSON types.
            what: how an error names the work, e.g. `litert export of mnist-mobilenet`.
            log: file that receives the worker's stdout and stderr.
            failure: the error type for an exception that is not edgeopt's own.
            progress: called with each line that the task passes to `report`.

        Raises:
            EdgeoptError: the task's own, as its type; or `failure` for any other exception.
            WorkerError: the worker crashed, or exceeded a limit.
            CancelledRunError: `cancel` was set.
        """
        self._calls += 1
        result_file = Path(self._scratch.path, f"result-{self._calls}.json")
        progress_file = Path(self._scratch.path, f"progress-{self._calls}")
        progress_file.touch()
        log.parent.mkdir(parents=True, exist_ok=True)
        job = {
            "task": task,
            "arguments": arguments,
            "what": what,
            "failure": failure.__name__,
            "log": str(log),
            "result": str(result_file),
            "progress": str(progress_file),
        }
        process = self._started(log)
        sound = False
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            self._wait(process, what, log, progress, result_file, progress_file)
            sound = result_file.exists()
        finally:
            if not sound:
                self._kill()
        return _outcome(process.returncode, result_file, what, log)

    def _started(self, log: Path) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            read_end, self._lifeline = os.pipe()
            try:
                with log.open("ab") as sink:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "edgeopt.worker", str(read_end)],
                        stdin=subprocess.PIPE,
                        stdout=sink,
                        stderr=sink,
                        env=_environment(self._threads, str(self._scratch.path), self._environment),
                        start_new_session=True,
                        pass_fds=(read_end,),
                    )
            finally:
                os.close(read_end)
        return self._process

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        what: str,
        log: Path,
        progress: Callable[[str], None] | None,
        result_file: Path,
        progress_file: Path,
    ) -> None:
        started = time.monotonic()
        next_memory_check = started
        limits = self._limits
        with progress_file.open(encoding="utf-8") as lines:
            while process.poll() is None and not result_file.exists():
                now = time.monotonic()
                if self._cancel.is_set():
                    raise CancelledRunError(f"{what}: cancelled")
                if now - started > limits.timeout_s:
                    told = f"no result within {limits.timeout_s:g} s; raise --timeout"
                    raise WorkerError(f"{what}: {told}", log=str(log))
                if now >= next_memory_check:
                    next_memory_check = now + MEMORY_POLL_S
                    used = _resident_bytes(process.pid)
                    if used > limits.memory_bytes:
                        allowed = limits.memory_bytes >> 20
                        told = f"used {used >> 20} MiB, over its limit of {allowed} MiB; raise --memory"
                        raise WorkerError(f"{what}: {told}", log=str(log))
                for line in lines:
                    if progress is not None:
                        progress(line.strip())
                self._cancel.wait(POLL_S)

    def _kill(self) -> None:
        """Kill the process and all it started, those that left its process group too."""
        process, self._process = self._process, None
        lifeline, self._lifeline = self._lifeline, None
        if process is not None:
            _kill_tree(process)
        if lifeline is not None:
            os.close(lifeline)


def call(
    task: str,
    arguments: dict[str, Any],
    *,
    what: str,
    log: Path,
    limits: Limits | None = None,
    failure: type[EdgeoptError] = WorkerError,
    cancel: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
    threads: int | None = None,
    environment: dict[str, str] | None = None,
) -> Any:
    """Run one task in a worker of its own; see `Worker` and `Worker.call`."""
    with Worker(threads=threads, environment=environment, limits=limits, cancel=cancel) as worker:
        return worker.call(task, arguments, what=what, log=log, failure=failure, progress=progress)


def report(line: str) -> None:
    """Tell the parent how far the work is; call it from inside a task."""
    if _progress_file is not None:
        with _progress_file.open("a", encoding="utf-8") as sink:
            sink.write(" ".join(line.split()) + "\n")


def progress_file() -> Path | None:
    """Return where `report` writes to, for a process that a task starts."""
    return _progress_file


def report_to(path: Path | None) -> None:
    """Let `report` write there; for a process that a task started."""
    global _progress_file
    _progress_file = path


def _environment(threads: int | None, scratch: str, added: dict[str, str]) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    environment.update(
        PYTHONUNBUFFERED="1",
        HF_HUB_OFFLINE="1",
        JAX_PLATFORMS="cpu",
        TOKENIZERS_PARALLELISM="false",
        TMPDIR=scratch,
    )
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment | added


def _resident_bytes(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for member in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    strays: list[psutil.Process] = []
    if process.poll() is None:
        with contextlib.suppress(psutil.Error):
            strays = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stray in strays:
        with contextlib.suppress(psutil.Error):
            stray.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _outcome(returncode: int | None, result_file: Path, what: str, log: Path) -> Any:
    try:
        outcome = json.loads(result_file.read_bytes())
    except (FileNotFoundError, ValueError):
        raise WorkerError(f"{what}: {_death(returncode)}", log=str(log)) from None
    if "error" in outcome:
        kind = getattr(errors, outcome["error"], WorkerError)
        error: EdgeoptError = kind.__new__(kind)
        Exception.__init__(error, outcome["message"])
        error.log = str(log) if outcome["foreign"] else None
        raise error
    return outcome["result"]


def _death(returncode: int | None) -> str:
    if returncode is None or returncode >= 0:
        return f"the worker ended with exit code {returncode} and no result"
    name = signal.Signals(-returncode).name
    hints = {"SIGKILL": ", perhaps by the kernel for want of memory"}
    return f"the worker was killed by {name}{hints.get(name, '')}"


def summary(error: BaseException) -> str:
    """Return one line for an exception of a third-party tool: the root cause's first line that says something."""
    root = error
    seen = {id(root)}
    while True:
        inner = root.__cause__ or (None if root.__suppress_context__ else root.__context__)
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        root = inner
    lines = [line.strip() for line in str(root).splitlines() if any(c.isalnum() for c in line)]
    text = lines[0] if lines else ""
    return f"{type(root).__name__}: {text[:400]}" if text else type(root).__name__


def _end_with_parent(lifeline: int) -> None:
    """Leave a process that waits for the parent's end and then kills the group.

    It is a process and not a thread because a converter may hold the interpreter's lock for ever, and not the kernel's
    parent-death signal because that reaches the worker alone, not what it started.
    """
    if os.fork():
        os.close(lifeline)
        with contextlib.suppress(OSError):  # Linux: when memory runs out, rather this process than another
            Path("/proc/self/oom_score_adj").write_text("1000")
        return
    os.close(0)
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _receive(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    # Unbuffered: a buffer's lock, held by this waiting thread, would make an exiting interpreter abort.
    with open(0, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            jobs.put(json.loads(line))


def _perform(job: dict[str, Any]) -> dict[str, Any]:
    module_name, function_name = job["task"].split(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        return {"result": function(**job["arguments"])}
    except EdgeoptError as error:
        traceback.print_exc()
        return {"error": type(error).__name__, "message": str(error), "foreign": error.__cause__ is not None}
    except MemoryError:
        traceback.print_exc()
        return {"error": "WorkerError", "message": f"{job['what']}: ran out of memory", "foreign": True}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the process boundary: whatever a tool raises ends here
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno == 28:
            place = error.filename or "the output folder"
            return {"error": OutputError.__name__, "message": f"{place}: no space left on the disk", "foreign": True}
        return {"error": job["failure"], "message": f"{job['what']}: {summary(error)}", "foreign": True}


def _main() -> None:
    # Tasks must meet this module under its own name, or `report` would write nowhere.
    import edgeopt.worker as named

    _end_with_parent(int(sys.argv[1]))
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs,), daemon=True).start()
    while True:
        job = jobs.get()
        log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        named.report_to(Path(job["progress"]))
        outcome = _perform(job)
        sys.stdout.flush()
        sys.stderr.flush()
        temporary = Path(job["result"] + ".part")
        temporary.write_text(json.dumps(outcome))
        temporary.replace(job["result"])


if __name__ == "__main__":
    _main()
