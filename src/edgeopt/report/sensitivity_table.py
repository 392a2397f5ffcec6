"""The sensitivity of a model's units as a table for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report.sensitivity_plot import worst_first

EXACT_DB = 300.0


def show_sensitivity(document: dict[str, Any], console: Console, limit: int = 20) -> None:
    """Print the units that do most damage, then what was found.

    Args:
        document: with `model`, `precision`, `sensitivity` and, where a search was made, `choice`.
        console: to print on.
        limit: rows at most.
    """
    sensitivity = document["sensitivity"]
    metric = sensitivity["metric"]
    rows = worst_first(sensitivity)
    whole = sensitivity["quantized"]
    title = (
        f"{document['model']} in {document['precision']}: {len(rows)} units on {sensitivity['samples']} samples\n"
        f"output SQNR in dB, all quantized {_decibel(whole['snr_db'])}: one unit alone, its own result, all without it"
        + (f"; drop of {metric}, alone" if metric else "")
    )
    table = Table(title=title, title_justify="left")
    table.add_column("unit", overflow="fold", min_width=20)
    table.add_column("kind", min_width=8)
    for column in ("MACs", "alone", "own", "without"):
        table.add_column(column, justify="right", min_width=len(column))
    if metric:
        table.add_column("drop", justify="right", min_width=7)
    for row in rows[:limit]:
        cells = [_count(row["macs"]), *(_decibel(row[k]) for k in ("sqnr_db", "own_sqnr_db", "left_out_sqnr_db"))]
        cells += [f"{100 * row['metric_drop']:.2f} pt"] if metric else []
        table.add_row(Text(row["name"]), row["kind"], *cells)
    console.print(table)
    if len(rows) > limit:
        console.print(f"and {len(rows) - limit} units that do less damage (all in --json)", highlight=False)
    choice = document.get("choice")
    if choice is not None:
        _show_choice(choice, console)


def _show_choice(choice: dict[str, Any], console: Console) -> None:
    before, after = choice["before"], choice["after"]
    if not choice["keep_float"] and choice["reached"]:
        console.print(f"within the tolerance as it is: {_score(before)}", highlight=False, soft_wrap=True)
        return
    names = ", ".join(choice["keep_float"])
    share = f"{100 * choice['macs_share']:.1f} % of the MACs, {100 * choice['parameters_share']:.1f} % of the weights"
    console.print(Text(f"keep in float: {names} ({share})"), soft_wrap=True)
    console.print(f"calibration samples: {_score(before)} → {_score(after)}", highlight=False, soft_wrap=True)
    if choice["held_out_after"] is not None:
        told = f"held-out samples: {_score(choice['held_out_before'])} → {_score(choice['held_out_after'])}"
        console.print(told, highlight=False, soft_wrap=True)
    if not choice["reached"]:
        console.print(Text("the tolerance cannot be reached even in float", "red"))


def _score(score: dict[str, Any]) -> str:
    told = f"{_decibel(score['snr_db'])} dB"
    for name in ("agreement", "metric", "overlap"):
        if score[name] is not None:
            told += f", {name} {100 * score[name]:.2f} %"
    return told


def _count(number: float) -> str:
    """Return a count as people read it: `451 k`."""
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} G"


def _decibel(value: float) -> str:
    return "exact" if value >= EXACT_DB else f"{value:.1f}"
