"""What every device that artifacts are measured on can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Device(Protocol):
    """A machine that runs `devices/runner.py`.

    Attributes:
        name: as `--on` names it.
    """

    name: str

    def probe(self) -> dict[str, Any]:
        """Return the environment: processor, operating system, installed engines.

        Raises:
            DeviceError: it cannot be reached or has no Python that can run the runner.
        """
        ...

    def push(self, path: Path) -> str:
        """Bring a file to the device and return its path there.

        Raises:
            DeviceError: it cannot be copied.
        """
        ...

    def run(self, job: dict[str, Any], *, what: str, timeout_s: float, log: Path) -> dict[str, Any]:
        """Perform one job of the runner and return its result.

        Args:
            job: as `devices/runner.py` describes it, with paths on the device.
            what: how an error names the work.
            timeout_s: after which the runner is killed.
            log: receives everything that the runner and its engine print.

        Raises:
            ArtifactError: the artifact is damaged, or crashed the engine.
            DeviceError: the device failed: no engine, no memory, no answer in time.
            CancelledRunError: the run was cancelled.
        """
        ...

    def pull(self, place: str, out: Path) -> None:
        """Bring a file from the device.

        Raises:
            DeviceError: it is not there or cannot be copied.
        """
        ...

    def cleanup(self) -> None:
        """Remove everything that `push` left on the device."""
        ...
