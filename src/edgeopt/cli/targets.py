"""`edgeopt targets`."""

from __future__ import annotations

import click
import yaml
from rich.console import Console
from rich.table import Table

from edgeopt.cli.options import print_json
from edgeopt.core.target import load_target, shipped_targets


@click.command("targets")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def command(name: str | None, as_json: bool) -> int:
    """List the device profiles, or show the one called NAME (or in NAME.yaml)."""
    if name:
        document = load_target(name).model_dump(mode="json")
        if as_json:
            print_json(document)
        else:
            click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
        return 0
    targets = [load_target(known) for known in shipped_targets()]
    if as_json:
        print_json({"targets": [t.model_dump(mode="json") for t in targets]})
        return 0
    table = Table()
    for column in ("target", "formats", "precision", "layout", "threads"):
        table.add_column(column, no_wrap=column in ("target", "precision"))
    for target in targets:
        formats = ", ".join(target.formats)
        table.add_row(target.name, formats, target.precision, target.layout, str(target.threads))
    Console().print(table)
    return 0
