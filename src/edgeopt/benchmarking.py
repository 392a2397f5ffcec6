"""Measures artifacts on a device: launch by launch, and where two are compared, in pairs until a verdict holds."""

from __future__ import annotations

from pathlib import Path

from edgeopt.context import Progress, Silent
from edgeopt.core.device import Device
from edgeopt.core.measurement import Measurement, PairedMeasurement

LAUNCHES = 7
MAX_SECONDS = 60.0


def measure_latency(
    artifact: Path,
    *,
    device: Device,
    logs: Path,
    threads: int = 1,
    launches: int = LAUNCHES,
    max_seconds: float = MAX_SECONDS,
    inputs: Path | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Launch one artifact several times."""
    raise NotImplementedError


def compare_latency(
    artifact: Path,
    against: Path,
    *,
    device: Device,
    logs: Path,
    threads: int = 1,
    launches: int = LAUNCHES,
    pairs: int = 40,
    max_seconds: float = MAX_SECONDS,
    max_ratio: float | None = None,
    inputs: Path | None = None,
    progress: Progress | None = None,
) -> PairedMeasurement:
    """Launch both in pairs; more launches follow while the verdict is inconclusive and time is left."""
    raise NotImplementedError
