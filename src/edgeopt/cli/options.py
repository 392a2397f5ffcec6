"""Options that several verbs share, and what they turn into."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeopt.cache import Cache, default_root
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.core.errors import UsageError
from edgeopt.steps import Source
from edgeopt.worker import Limits

F = TypeVar("F", bound=Callable[..., Any])
KEPT_LOGS = 20


def source_options(function: F) -> F:
    """Add the options that say how to load a model."""
    for option in (
        click.option("--trust-source", is_flag=True, help="Allow code that comes with the model's file to run."),
        click.option("--input-shape", multiple=True, metavar="N,C,H,W", help="Shape of each input, in order."),
        click.option("--arch", metavar="FILE.py:FACTORY", help="Builds the module for a file of weights."),
    ):
        function = option(function)
    return function


def work_options(function: F) -> F:
    """Add the options that say how workers run and what is shown."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Show the converters' own output."),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output."),
        click.option("--no-cache", is_flag=True, help="Neither read nor write the cache of finished steps."),
        click.option("--jobs", type=click.IntRange(min=1), help="Workers at once.  [default: the number of cores]"),
        click.option("--memory", metavar="GIB", type=float, help="Memory of one worker.  [default: 80 % of the host]"),
        click.option("--timeout", metavar="S", type=float, default=1800.0, show_default=True, help="Of one worker."),
    ):
        function = option(function)
    return function


def splitting(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Let an option be repeated or hold several names with commas."""
    return tuple(name.strip() for part in value for name in part.split(",") if name.strip())


def make_source(name: str, arch: str | None, input_shape: tuple[str, ...], trust_source: bool) -> Source:
    """Return the source that the options name.

    Raises:
        UsageError: a shape is no list of positive integers.
    """
    shapes = []
    for text in input_shape:
        try:
            shape = tuple(int(d) for d in text.replace("x", ",").strip("[]() ").split(","))
        except ValueError as error:
            raise UsageError(f"--input-shape {text!r}: expected integers such as 1,3,224,224") from error
        if min(shape) < 1:
            raise UsageError(f"--input-shape {text!r}: every dimension must be at least 1")
        shapes.append(shape)
    return Source(name, arch, trust_source, tuple(shapes))


def make_context(
    *, verbose: bool, quiet: bool, no_cache: bool, jobs: int | None, memory: float | None, timeout: float
) -> Context:
    """Return the context that the options ask for; its display must be closed by the caller."""
    if timeout <= 0 or (memory is not None and memory <= 0):
        raise UsageError("--timeout and --memory must be positive")
    limits = Limits(timeout) if memory is None else Limits(timeout, int(memory * 2**30))
    logs = _new_log_folder()
    display = Display(quiet=quiet, verbose=verbose, logs=logs)
    cache = None if no_cache else Cache(default_root())
    context = Context(logs=logs, limits=limits, cache=cache, progress=display)
    return context if jobs is None else replace(context, jobs=jobs)


def with_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the work options by one `context`, whose display is closed when the verb ends."""

    @functools.wraps(function)
    def wrapper(
        *,
        verbose: bool,
        quiet: bool,
        no_cache: bool,
        jobs: int | None,
        memory: float | None,
        timeout: float,
        **options: Any,
    ) -> Any:
        context = make_context(
            verbose=verbose, quiet=quiet, no_cache=no_cache, jobs=jobs, memory=memory, timeout=timeout
        )
        display = context.progress
        assert isinstance(display, Display)
        with display:
            return function(context=context, display=display, **options)

    return wrapper


def is_sound(manifest: dict[str, Any]) -> bool:
    """Tell whether every file was made and passed its comparison."""
    return not manifest["failures"] and all(a["parity"]["passed"] for a in manifest["artifacts"])


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of `--json`."""
    click.echo(json.dumps(document, indent=2))


def _new_log_folder() -> Path:
    """Return a folder for this run's logs; the oldest beyond the last twenty are removed."""
    root = default_root() / "logs"
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be written: {error.strerror}; set EDGEOPT_CACHE to a folder that can"
        ) from None
    for old in sorted(root.iterdir())[:-KEPT_LOGS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
