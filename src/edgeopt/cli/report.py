"""`edgeopt report`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from edgeopt.bundle.reading import write_whole
from edgeopt.reporting import collect


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: DIR/report.html]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "markdown", "terminal"]),
    help="[default: by the name of the output, else html]",
)
def command(*, folder: Path, output: Path | None, form: Literal["html", "markdown", "terminal"] | None) -> int:
    """Show all that is known of a bundle, or of every bundle in DIR, in one page that opens offline.

    It reads what `convert`, `eval`, `bench`, `sensitivity -o DIR` and `gate --json > DIR/gate.json` left in the bundle.

    \b
    edgeopt report out/demo
    edgeopt report out/demo --format markdown -o summary.md
    """  # noqa: D301 - click wants the character itself
    form = form or ("markdown" if output is not None and output.suffix.lower() == ".md" else "html")
    report = collect(folder)
    if form == "terminal":
        from edgeopt.report.report_terminal import show_report

        show_report(report, Console())
        return 0
    if form == "markdown":
        from edgeopt.report.report_markdown import markdown_report

        text = markdown_report(report)
        if output is None:
            click.echo(text, nl=False)
            return 0
    else:
        from edgeopt.report.html import html_page

        text = html_page(report)
        output = output or folder / "report.html"
    write_whole(output, text)
    click.echo(str(output))
    return 0
