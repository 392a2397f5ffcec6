"""Hands a run's record to an experiment tracker; its client is loaded in a worker, and only where it was asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgeopt.core.errors import MissingBackendError, TrackingError
from edgeopt.steps import Document, Workshop

Tracker = Literal["mlflow"]
PACKAGES = ("mlflow", "sqlalchemy", "alembic")
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


def require_tracker(work: Workshop, tracker: Tracker) -> None:
    """Make sure, before any work, that a record can be stored.

    Raises:
        MissingBackendError: the tracker's package is not installed.
        TrackingError: its store does not answer.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingBackendError(package, tracker)
    with work.worker(environment=QUIET) as worker:
        found = work.call(worker, tracker, "track:reach", {}, what=f"reaching {tracker}", failure=TrackingError)
    work.context.progress.finish(tracker, f"records go to {found['store']}", ok=True)


def track(work: Workshop, tracker: Tracker, record: Document, bundle: Path) -> Document:
    """Log a record and its bundle, and register the model; returns where to find it.

    Raises:
        TrackingError: the store refused it.
    """
    arguments = {"record": record, "bundle": str(bundle), "name": record["model"]["name"]}
    with work.worker(environment=QUIET) as worker:
        told: Document = work.call(
            worker, tracker, "track:log_run", arguments, what=f"logging to {tracker}", failure=TrackingError
        )
    work.context.progress.finish(tracker, f"run {told['run']}, {told['model']} version {told['version']}", ok=True)
    return told
