"""A gate as a table for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report.quantities import VERDICTS, margin, one_line, quantity, sentence

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "not measured": "yellow"}
OUTCOMES = {"pass": "within budget", "fail": "budget exceeded", "inconclusive": "inconclusive"}


def show_gate(document: dict[str, Any], console: Console) -> None:
    """Print every limit, those exceeded first, and what each means in a line of its own where there is more to say.

    Args:
        document: `Gate.to_json()`.
        console: to print on.
    """
    rows = [*document["violations"], *document["unjudged"], *document["passed"]]
    table = Table(title=Text(one_line(f"gate of {document['model']}: {document['bundle']}")), title_justify="left")
    for column in ("verdict", "artifact", "limit"):
        table.add_column(column, no_wrap=column != "artifact", overflow="fold")
    for column in ("measured", "allowed", "margin"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(VERDICTS[row["verdict"]], STYLES[row["verdict"]]),
            Text(one_line(row["artifact"])),
            row["limit"],
            quantity(row["measured"], row["unit"]),
            quantity(row["allowed"], row["unit"]),
            margin(row),
        )
    console.print(table)
    for row in [*document["violations"], *document["unjudged"]]:
        console.print(Text(f"{VERDICTS[row['verdict']]}: {sentence(row)}", STYLES[row["verdict"]]), soft_wrap=True)
    for note in document["notes"]:
        console.print(Text(one_line(f"note: {note}")), soft_wrap=True)
    outcome = document["verdict"]
    console.print(Text(OUTCOMES[outcome], STYLES[outcome]))
