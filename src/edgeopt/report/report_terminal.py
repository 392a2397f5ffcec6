"""A report for people who look at a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report.contents import BundleReport, Damage, Report
from edgeopt.report.quantities import decibel, duration, points, share, size

EXAMPLES = 8


def show_report(report: Report, console: Console) -> None:
    """Print what the HTML page says, in short."""
    for bundle in report.bundles:
        on = f" on {bundle.target}" if bundle.target else ""
        console.print(Text(f"{bundle.name}{on} ({bundle.folder})", "bold"), soft_wrap=True)
        console.print(Text(bundle.verdict, "green" if bundle.sound else "red"), soft_wrap=True)
        console.print(_artifacts(bundle))
        for told in bundle.gains:
            console.print(Text(told), soft_wrap=True)
        for told in (*bundle.failures, *bundle.notes):
            console.print(Text(f"note: {told}"), soft_wrap=True)
        _show_damage(bundle, console)
        if bundle.stages is not None:
            _show_damage(bundle.stages, console)
        for found in bundle.sensitivities:
            worst = ", ".join(f"{u.name} {decibel(u.alone_db)}" for u in found.units[:5])
            console.print(Text(f"most damage in {found.precision}: {worst}"), soft_wrap=True)


def _artifacts(bundle: BundleReport) -> Table:
    table = Table("artifact", "comparison")
    for column in ("size", "median", "top-1", "change", "agree", "SNR"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in bundle.artifacts:
        table.add_row(
            Text(row.name),
            Text("passed", "green") if row.passed else Text(row.reason or "failed", "red"),
            size(row.size_bytes),
            duration(row.latency.median.value) if row.latency else "",
            share(row.accuracy),
            "" if row.drop is None else points(-row.drop),
            share(row.agreement),
            decibel(row.snr_db),
        )
    return table


def _show_damage(bundle: BundleReport | Damage, console: Console) -> None:
    for row in bundle.classes:
        hit = [f"{n} {points(-d)}" for n, d in zip(bundle.names, row.drops, strict=True) if d is not None and d > 0]
        if hit:
            console.print(Text(f"class {row.name} ({row.samples} samples): {', '.join(hit)}"), soft_wrap=True)
    for group in bundle.groups:
        shares = ", ".join(f"{n} {share(a)}" for n, a in zip(bundle.names, group.accuracies, strict=True))
        console.print(Text(f"{group.column} = {group.value} ({group.samples} samples): {shares}"), soft_wrap=True)
    for example in bundle.changed[:EXAMPLES]:
        after = "; ".join(f"{told} ({', '.join(by)})" for told, by in example.answers)
        label = f", label {example.label}" if example.label is not None else ""
        console.print(Text(f"sample {example.id}{label}: {example.before} → {after}"), soft_wrap=True)
    if bundle.changed_count > EXAMPLES:
        console.print(f"and {bundle.changed_count - EXAMPLES} more changed answers", highlight=False)
