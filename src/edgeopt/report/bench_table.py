"""What was measured, for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report.quantities import size

Document = dict[str, Any]
COLOURS = {"faster": "green", "equal": "", "slower": "red", "inconclusive": "yellow"}


def show_bench(document: Document, console: Console) -> None:
    """Print one table of artifacts, one of comparisons, and what was not measured."""
    device = document["device"]
    threads = {r["threads"] for r in document["measurements"] + document["comparisons"]}
    told = f"{document['on']}: {device['cpu'] or device['machine']}, {device['cpus']} CPUs, threads {sorted(threads)}"
    console.print(told, highlight=False, markup=False)
    if document["measurements"]:
        _show_measurements(document["measurements"], console)
    if document["comparisons"]:
        _show_comparisons(document["comparisons"], console)
    for record in document["not_measured"]:
        console.print(f"not measured: {record['path']}: {record['reason']}", highlight=False, soft_wrap=True)
    for record in document["failures"]:
        log = f" (log: {record['log']})" if record["log"] else ""
        console.print(Text(f"failed: {record['path']}: {record['reason']}{log}", "red"), soft_wrap=True)


def duration(nanoseconds: float) -> str:
    """Return a time as people read it: `8.91 ms`."""
    scale, unit = _unit(nanoseconds)
    return f"{nanoseconds / scale:.3g} {unit}"


def interval(quantity: Document | None) -> str:
    """Return a time with its bounds below it; empty where it is not known."""
    if quantity is None:
        return ""
    if quantity["low"] is None:
        return duration(quantity["value"])
    scale, _ = _unit(quantity["value"])
    return f"{duration(quantity['value'])}\n{quantity['low'] / scale:.3g}–{quantity['high'] / scale:.3g}"


def _unit(nanoseconds: float) -> tuple[float, str]:
    for scale, unit in ((1.0, "ns"), (1e3, "µs"), (1e6, "ms")):
        if nanoseconds < 1000 * scale:
            return scale, unit
    return 1e9, "s"


def _show_measurements(records: list[Document], console: Console) -> None:
    table = Table(show_lines=True)
    table.add_column("artifact")
    for column in ("cold start", "median\n95 %", "p90\n99 %", "p99\n99 %", "per s", "memory\nof it model", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in records:
        found = record["summary"]
        table.add_row(
            _name(record["artifact"]),
            interval(found["cold_start"]),
            interval(found["median"]),
            interval(found["p90"]),
            interval(found["p99"]),
            f"{found['throughput_per_s']:,.0f}",
            f"{size(found['peak_memory_bytes'])}\n{size(found['model_memory_bytes'])}",
            size(record["artifact"]["size_bytes"]),
        )
    console.print(table)
    every = [record["summary"]["notes"] for record in records]
    common = [note for note in every[0] if all(note in notes for notes in every)]
    for record in records:
        energy = record["summary"]["energy_uj_per_call"]
        notes = [note for note in record["summary"]["notes"] if note not in common]
        if energy is not None:
            notes.append(f"{energy / 1000:.3g} mJ of the processor package for one call")
        if notes:
            console.print(f"{_name(record['artifact'])}: {'; '.join(notes)}", highlight=False, soft_wrap=True)
    for note in common:
        console.print(note, highlight=False, soft_wrap=True)


def _show_comparisons(records: list[Document], console: Console) -> None:
    table = Table()
    table.add_column("artifact", overflow="fold")
    table.add_column("against", overflow="fold")
    for column in ("time ratio", "bounds", "launches", "pairs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for record in records:
        found = record["summary"]
        bounds = "" if found["high"] is None else f"{found['low']:.3f}–{found['high']:.3f}"
        table.add_row(
            _name(record["artifact"]),
            record["against"]["path"],
            f"{found['ratio']:.3f}",
            bounds,
            str(found["launches"]),
            str(found["pairs"]),
            Text(found["verdict"], COLOURS[found["verdict"]]),
        )
    console.print(table)
    for record in records:
        found = record["summary"]
        if found["verdict"] == "inconclusive" and found["spread"] is not None:
            told = (
                f"launches differ by {100 * found['spread']:.1f} %; a quieter machine or a higher --max-seconds helps"
            )
            console.print(f"{_name(record['artifact'])}: inconclusive: {told}", highlight=False, soft_wrap=True)


def _name(artifact: Document) -> str:
    if artifact["precision"] == "unknown":
        return str(artifact["path"]).rpartition("/")[2]
    return f"{artifact['format']} {artifact['precision']}"
