"""`edgeopt bench`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from rich.console import Console

from edgeopt.benchmarking import LAUNCHES, MAX_SECONDS, Request, bench
from edgeopt.bundle.folder import MANIFEST
from edgeopt.bundle.reading import write_whole
from edgeopt.cli.options import print_json, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.core.errors import OutputError
from edgeopt.report.bench_table import show_bench

RESULT = "bench.json"


@click.command("bench")
@click.argument("names", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE|ARTIFACT...")
@click.option("--on", default="local", show_default=True, metavar="DEVICE", help="Where to measure.")
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="OTHER", help="Compare with a bundle or artifact, in pairs."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of the engine.")
@click.option("--launches", type=click.IntRange(min=1), default=LAUNCHES, show_default=True, help="Processes to start.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=MAX_SECONDS,
    show_default=True,
    help="For each artifact; an inconclusive comparison goes on until then.",
)
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz", help="Input arrays.  [default: random]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keeps the raw samples.  [default: bench.json in the bundle]",
)
@work_options
@with_context
def command(
    *,
    names: tuple[Path, ...],
    on: str,
    against: Path | None,
    threads: int,
    launches: int,
    max_seconds: float,
    inputs: Path | None,
    output: Path | None,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Measure latency, cold start, memory and size of artifacts; comparisons are always made in pairs.

    Exit codes: 0 measured, 1 an artifact failed, 2 usage, 4 a comparison is inconclusive.
    """
    if output is None and len(names) == 1 and names[0].suffix != ".mlpackage" and names[0].is_dir():
        output = names[0] / RESULT
    if output is not None:
        _refuse_unwritable(output)
    request = Request(threads, launches, max_seconds=max_seconds, inputs=inputs, timeout_s=context.limits.timeout_s)
    document = bench(names, context, request, on=on, against=against)
    if output is not None:
        write_whole(output, json.dumps(document) + "\n")
    display.close()
    if as_json:
        print_json(document)
    else:
        show_bench(document, Console())
        if output is not None:
            click.echo(f"raw samples: {output}")
    if document["failures"]:
        return 1
    return 4 if any(c["summary"]["verdict"] == "inconclusive" for c in document["comparisons"]) else 0


def _refuse_unwritable(output: Path) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    if output.is_dir() or output.name == MANIFEST:
        raise OutputError(f"{output}: {'is a folder' if output.is_dir() else 'is the bundle itself'}; -o names a file")
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{output}: cannot be written")
