"""`edgeopt doctor`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.cli.options import print_json, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.pipeline import diagnose


@click.command("doctor")
@work_options
@with_context
def command(*, as_json: bool, context: Context, display: Display) -> int:
    """Export and run a tiny model with every backend that is installed.

    Ends with 1 if an installed backend does not work; one that is not installed is only reported.
    """
    document = diagnose(context)
    display.close()
    if as_json:
        print_json(document)
    else:
        _show(document, Console())
    return 1 if any(b["state"] == "broken" for b in document["backends"]) else 0


def _show(document: dict[str, list[dict[str, str]]], console: Console) -> None:
    table = Table("backend", "state", "versions", "what to do")
    colors = {"works": "green", "broken": "red", "not installed": "yellow"}
    for backend in document["backends"]:
        state = backend["state"]
        table.add_row(backend["format"], Text(state, colors[state]), _versions(backend["packages"]), backend["advice"])
    console.print(table)


def _versions(packages: str) -> str:
    told = []
    for package in packages.split():
        try:
            told.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            told.append(f"{package} missing")
    return "\n".join(told)
