"""`edgeopt targets`."""

from __future__ import annotations

import click
import yaml
from rich.console import Console
from rich.table import Table

from edgeopt.cli.options import print_json
from edgeopt.core.formats import FORMATS, OLDEST_SYSTEM, PRECISIONS, Format
from edgeopt.core.target import load_target, shipped_targets


@click.command("targets")
@click.argument("name", required=False)
@click.option("--precisions", is_flag=True, help="Show what each format supports, and why not where it does not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def command(name: str | None, precisions: bool, as_json: bool) -> int:
    """List the device profiles, or show the one called NAME (or in NAME.yaml)."""
    if precisions:
        return _show_precisions(as_json)
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


def _answer(form: Format, precision: str) -> str:
    oldest = OLDEST_SYSTEM.get(precision)
    return form.refuses.get(precision) or (f"from {oldest}" if form.name == "coreml" and oldest else "yes")


def _show_precisions(as_json: bool) -> int:
    if as_json:
        print_json({"formats": {f.name: {p: _answer(f, p) for p in PRECISIONS} for f in FORMATS.values()}})
        return 0
    table = Table("precision", *FORMATS)
    for precision in PRECISIONS:
        table.add_row(precision, *("no" if precision in f.refuses else _answer(f, precision) for f in FORMATS.values()))
    console = Console()
    console.print(table)
    for form in FORMATS.values():
        for precision, reason in form.refuses.items():
            console.print(f"{form.name} {precision}: {reason}", highlight=False, soft_wrap=True)
    return 0
