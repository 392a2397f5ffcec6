"""`edgeopt gate`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from edgeopt.bundle.reading import open_bundle, write_whole
from edgeopt.core.budget import LatencyEvidence, LatencyLimit, read_budget
from edgeopt.core.errors import OutputError
from edgeopt.core.target import load_target, shipped_targets
from edgeopt.gating import EXIT_CODES, Compare, gate
from edgeopt.report.gate_table import show_gate


@click.command("gate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--budget", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A budgets.yaml.")
@click.option("--baseline", type=click.Path(path_type=Path), metavar="BUNDLE", help="An earlier bundle.")
@click.option("--target", metavar="NAME", help="Whose limits apply.  [default: the one the bundle was made for]")
@click.option(
    "--inconclusive",
    type=click.Choice(["pass", "fail"]),
    help="What becomes of limits that could not be judged.  [default: exit code 4]",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit XML.")
@click.option("--summary", type=click.Path(path_type=Path), metavar="FILE.md", help="Write a summary in Markdown.")
@click.option("--no-measure", is_flag=True, help="Run nothing: latency that was to be measured is then not judged.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of the engines.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="For each comparison of latencies.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def command(
    *,
    bundle: Path,
    budget: Path,
    baseline: Path | None,
    target: str | None,
    inconclusive: Literal["pass", "fail"] | None,
    junit: Path | None,
    summary: Path | None,
    no_measure: bool,
    threads: int,
    max_seconds: float,
    quiet: bool,
    as_json: bool,
) -> int:
    """Hold every artifact of BUNDLE against the limits of a budget, and list all that are exceeded.

    Ends with 0 within budget, 3 exceeded, 4 where nothing is exceeded but something could not be judged. Sizes and
    parity come from the bundle, accuracy from `edgeopt eval`, memory from `edgeopt bench`; latencies are compared here,
    in turns, on this machine.

    \b
    edgeopt gate out/demo --budget budgets.yaml
    edgeopt gate out/demo --budget budgets.yaml --baseline out/main --junit gate.xml
    """  # noqa: D301 - click wants the character itself
    limits = read_budget(budget, list(shipped_targets()))
    if target is not None and target.endswith((".yaml", ".yml")):
        target = load_target(target).name
    with ExitStack() as stack:
        compare: Compare | None = None
        if not no_measure:
            compare = stack.enter_context(_comparing(threads, max_seconds, quiet or as_json))
        found = gate(
            open_bundle(bundle),
            limits,
            baseline=open_bundle(baseline) if baseline else None,
            target=target,
            compare=compare,
        )
    document = found.to_json(inconclusive)
    if junit is not None:
        from edgeopt.report.junit import junit_xml

        write_whole(junit, junit_xml(document, inconclusive))
    if summary is not None:
        from edgeopt.report.markdown import gate_markdown

        _write_summary(summary, gate_markdown(document))
    if as_json:
        import json

        click.echo(json.dumps(document, indent=2))
    else:
        show_gate(document, Console())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from edgeopt.report.annotations import github_annotations

        for line in github_annotations(document, inconclusive):
            click.echo(line, err=as_json)
    return EXIT_CODES[found.outcome(inconclusive)]


def _write_summary(path: Path, text: str) -> None:
    """Write the summary; the file that GitHub gives a step for its own is added to."""
    if str(path) != os.environ.get("GITHUB_STEP_SUMMARY"):
        write_whole(path, text)
        return
    try:
        with path.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _comparing(threads: int, max_seconds: float, quiet: bool) -> Iterator[Compare]:
    """Yield what compares two files; what that needs is loaded when the first limit asks for it."""
    with ExitStack() as stack:
        opened: list[Compare] = []

        def compare(artifact: Path, against: Path, limit: LatencyLimit) -> LatencyEvidence:
            if not opened:
                opened.append(stack.enter_context(_local_comparison(threads, max_seconds, quiet)))
            return opened[0](artifact, against, limit)

        yield compare


@contextmanager
def _local_comparison(threads: int, max_seconds: float, quiet: bool) -> Iterator[Compare]:
    from edgeopt.bench.statistics import compare_measurement
    from edgeopt.benchmarking import Request, compare_latency, open_device
    from edgeopt.cli.options import make_context
    from edgeopt.cli.progress import Display

    context = make_context(verbose=False, quiet=quiet, no_cache=True, jobs=None, memory=None, timeout=1800.0)
    display = context.progress
    assert isinstance(display, Display)
    device = open_device("local", context)

    def compare(artifact: Path, against: Path, limit: LatencyLimit) -> LatencyEvidence:
        request = Request(threads, max_seconds=max_seconds, max_ratio=limit.max_ratio, min_effect=limit.min_effect)
        measured = compare_latency(artifact, against, device, request, logs=context.logs, progress=display)
        found = compare_measurement(measured)
        bounds = f"{found.low:.3f} to {found.high:.3f}, {found.launches} launches, {found.pairs} pairs"
        return LatencyEvidence(
            found.gate or "inconclusive", found.ratio, found.low, found.high, f"against {against.name}: {bounds}"
        )

    with display:
        try:
            yield compare
        finally:
            device.cleanup()
