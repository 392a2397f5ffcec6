"""`edgeopt cache`."""

from __future__ import annotations

import time

import click
from rich.console import Console
from rich.table import Table

from edgeopt.cache import Cache, default_root
from edgeopt.cli.options import print_json
from edgeopt.report.quantities import size


@click.group("cache")
def command() -> None:
    """List or clear what finished steps left; the folder is $EDGEOPT_CACHE."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def list_entries(as_json: bool) -> None:
    """List what is kept, the latest used first."""
    entries = Cache(default_root()).entries()
    if as_json:
        print_json({"root": str(default_root()), "entries": entries})
        return
    table = Table("key", "what", "size", "last used")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["used"]))
        table.add_row(entry["key"][:12], entry["stage"] or entry["name"] or "", size(entry["size_bytes"]), used)
    console = Console()
    console.print(table)
    total = size(sum(e["size_bytes"] for e in entries))
    console.print(f"{len(entries)} entries, {total} in {default_root()}", highlight=False, soft_wrap=True)


@command.command("clear")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def clear(as_json: bool) -> None:
    """Remove every entry, and the checkpoints of stages that were stopped."""
    freed = Cache(default_root()).clear()
    if as_json:
        print_json({"root": str(default_root()), "freed_bytes": freed})
    else:
        click.echo(f"{size(freed)} freed in {default_root()}")
