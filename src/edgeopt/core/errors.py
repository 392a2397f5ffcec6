"""Every failure a user can meet, one type each; the command line alone turns them into exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class EdgeoptError(Exception):
    """A failure told in one line: what was wrong, where, and what to do.

    `log` is the path of a file that holds the third-party tool's own words, where there is one.
    """

    exit_code = 1

    def __init__(self, message: str, *, log: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.log = log

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text} (log: {self.log})" if self.log else text


class UsageError(EdgeoptError):
    """The request itself is wrong: an unknown name, an option a format cannot do, a file that is not there."""

    exit_code = 2


class MissingBackendError(UsageError):
    """A package is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed: pip install "edgeopt[{extra}]"')
        self.package = package
        self.extra = extra


class DataError(EdgeoptError):
    """A data file, a row of one, or an image cannot be used."""


class SourceError(EdgeoptError):
    """A model file is damaged, of another kind than its name says, or does not fit its description."""


class UnsafeFileError(SourceError):
    """Loading the file would run code that came with it."""


class UnsupportedOpError(EdgeoptError):
    """An operator that a converter or evaluator does not know, with its place."""

    def __init__(self, op: str, place: str, advice: str) -> None:
        super().__init__(f"operator {op} at {place} is not supported: {advice}")
        self.op = op
        self.place = place


class ConversionError(EdgeoptError):
    """A converter refused the model."""


class NothingExportedError(ConversionError):
    """Every format failed; `failures` has one record each: format, precision, reason, log."""

    def __init__(self, failures: list[dict[str, Any]]) -> None:
        reasons = list(dict.fromkeys(str(f["reason"]) for f in failures))
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        super().__init__(f"no artifact could be made: {reasons[0]}{more}", log=failures[0]["log"])
        self.failures = failures


class ArtifactError(EdgeoptError):
    """An artifact is damaged or cannot be executed."""


class DeviceError(EdgeoptError):
    """A device cannot be reached, has no engine for an artifact, or failed while it ran one."""


class ParityError(EdgeoptError):
    """An artifact's outputs lie too far from the original's."""


class WorkerError(EdgeoptError):
    """A worker process died, ran out of time or of memory."""


class OutputError(EdgeoptError):
    """The output cannot be written: full disk, no permission, or a folder that holds something else."""


class TrackingError(EdgeoptError):
    """A run's record cannot be stored where experiments are kept."""


class CancelledRunError(EdgeoptError):
    """The user or a signal stopped the run."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or the list of those known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
