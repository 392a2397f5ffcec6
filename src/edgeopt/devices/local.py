"""The host itself as a device: the runner is a process of its own with limits of time and memory, its output kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from edgeopt.core.errors import ArtifactError, CancelledRunError, DeviceError, UsageError
from edgeopt.devices import runner
from edgeopt.worker import Limits

POLL_S = 0.02
MEMORY_POLL_S = 0.25
KINDS = {"artifact": ArtifactError, "engine": DeviceError, "job": UsageError}


def connect(address: str, *, limits: Limits | None = None, cancel: threading.Event | None = None) -> LocalDevice:
    """Return this host as a device.

    Args:
        address: what stands after `local:`; must be empty.
        limits: `memory_bytes` of the runner.
        cancel: when set, the runner is killed.

    Raises:
        UsageError: an address was given.
    """
    if address:
        raise UsageError(f"--on local takes no address, found {address!r}")
    return LocalDevice(limits or Limits(), cancel or threading.Event())


class LocalDevice:
    """The host that edgeopt runs on; see `core/device.py`."""

    name = "local"

    def __init__(self, limits: Limits, cancel: threading.Event) -> None:
        self._limits = limits
        self._cancel = cancel

    def probe(self) -> dict[str, Any]:
        """Return the environment; asks no engine to load."""
        found: dict[str, Any] = runner.perform(json.dumps({"mode": "probe"}))["environment"]
        return found

    def push(self, path: Path) -> str:
        """Return the file's own place: it is already here."""
        if not path.is_file():
            raise DeviceError(f"{path}: no such file")
        return str(path.absolute())

    def pull(self, place: str, out: Path) -> None:
        """Copy a file."""
        try:
            shutil.copyfile(place, out)
        except OSError as error:
            raise DeviceError(f"{place}: cannot be copied: {error.strerror}") from error

    def cleanup(self) -> None:
        """Do nothing: nothing was copied."""

    def run(self, job: dict[str, Any], *, what: str, timeout_s: float, log: Path) -> dict[str, Any]:
        """Perform one job; see `Device.run`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        # Without the safe path, the modules beside the runner could be taken for an engine's own.
        environment = os.environ | {"OMP_NUM_THREADS": str(job.get("threads", 1)), "PYTHONSAFEPATH": "1"}
        with log.open("ab+") as sink:
            began = sink.seek(0, os.SEEK_END)
            job = job | {"spawned_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC), "with_parent": True}
            process = subprocess.Popen(
                [sys.executable, runner.__file__],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
            try:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(json.dumps(job).encode())
                self._wait(process, what, timeout_s, log)
            finally:
                _kill(process)
            sink.seek(began)
            return _answer(sink.read(), process.returncode, what, log)

    def _wait(self, process: subprocess.Popen[bytes], what: str, timeout_s: float, log: Path) -> None:
        started = time.monotonic()
        next_memory_check = started + MEMORY_POLL_S
        while process.poll() is None:
            now = time.monotonic()
            if self._cancel.is_set():
                raise CancelledRunError(f"{what}: cancelled")
            if now - started > timeout_s:
                raise DeviceError(f"{what}: no result within {timeout_s:g} s", log=str(log))
            if now >= next_memory_check:
                next_memory_check = now + MEMORY_POLL_S
                with contextlib.suppress(psutil.Error):
                    used, allowed = psutil.Process(process.pid).memory_info().rss, self._limits.memory_bytes
                    if used > allowed:
                        told = f"used {used >> 20} MiB, over its limit of {allowed >> 20} MiB; raise --memory"
                        raise DeviceError(f"{what}: {told}", log=str(log))
            self._cancel.wait(POLL_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answer(output: bytes, code: int, what: str, log: Path) -> dict[str, Any]:
    """Return the result that the runner printed.

    Raises:
        EdgeoptError: what it printed is an error, or it died without a word.
    """
    lines = [line for line in output.splitlines() if line.startswith(runner.SENTINEL.encode())]
    if len(lines) != 1:
        if code < 0:
            told = f"the engine was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                raise DeviceError(f"{what}: {told}, perhaps by the kernel for want of memory", log=str(log))
            raise ArtifactError(f"{what}: {told}; the artifact may be damaged", log=str(log))
        raise ArtifactError(f"{what}: the engine ended with exit code {code} and no result", log=str(log))
    result: dict[str, Any] = json.loads(lines[0][len(runner.SENTINEL) :])
    if "error" in result:
        raise KINDS[result["kind"]](result["error"], log=str(log) if result["kind"] != "job" else None)
    return result
