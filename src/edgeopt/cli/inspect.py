"""`edgeopt inspect`."""

from __future__ import annotations

import click
from rich.console import Console

from edgeopt.cli.options import make_source, print_json, source_options, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.pipeline import inspect
from edgeopt.report.terminal import show_inspection


@click.command("inspect")
@click.argument("model")
@click.option("--layers", is_flag=True, help="List every layer.")
@source_options
@work_options
@with_context
def command(
    *,
    model: str,
    layers: bool,
    arch: str | None,
    input_shape: tuple[str, ...],
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Show what MODEL, or an artifact, is made of, without executing it."""
    document = inspect(make_source(model, arch, input_shape, trust_source), context)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_inspection(document, Console(), layers)
    return 0
