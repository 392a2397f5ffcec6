"""A recipe's plan and its stages, for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Document = dict[str, Any]


def show_plan(document: Document, console: Console) -> None:
    """Print what a recipe would do, options in full."""
    console.print(f"model: {document['model']}, seed {document['seed']}", highlight=False, soft_wrap=True)
    for number, stage in enumerate(document["stages"]):
        ((kind, options),) = stage.items()
        told = ", ".join(f"{name}={value}" for name, value in options.items() if value not in (None, [], {}))
        console.print(f"{number} {kind}: {told}", highlight=False, soft_wrap=True)
    made = f"{', '.join(document['formats'])} in {', '.join(document['precisions'])}"
    console.print(f"export: {made}" + (f" for {document['target']}" if document["target"] else ""), highlight=False)


def show_stages(document: Document, console: Console) -> None:
    """Print one row per stage: parameters, multiply-accumulates, and what the evaluation said."""
    metric = document["stages"][0]["evaluation"]["metric"] or document["stages"][-1]["evaluation"]["metric"]
    table = Table(title=f"{document['model']['name']}: stages", title_justify="left")
    table.add_column("stage", no_wrap=True)
    for column in ("parameters", "MACs", metric or "metric", "changed", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for record in document["stages"]:
        found = record["evaluation"]
        value = found.get(metric) if metric else None
        changed = record.get("changed")
        table.add_row(
            record["stage"],
            f"{record['counts']['params']:,}",
            f"{record['counts']['macs']:,}",
            "" if value is None else f"{value:.4f}",
            "" if changed is None else str(changed["count"]),
            f"{record['seconds']:.1f}" if "seconds" in record else "",
            "from the cache" if record["cached"] else "",
        )
    console.print(table)
