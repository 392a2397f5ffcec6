"""A report in Markdown."""

from __future__ import annotations

from edgeopt.report.contents import BundleReport, Damage, Report
from edgeopt.report.markdown import plain, table
from edgeopt.report.quantities import decibel, duration, points, share, size

NONE = "–"


def markdown_report(report: Report) -> str:
    """Return what the HTML page says, without its pictures."""
    lines = [f"# {plain(report.title)}", "", f"Report of edgeopt {plain(report.version)}", ""]
    for bundle in report.bundles:
        lines += _bundle(bundle)
    return "\n".join(lines).rstrip() + "\n"


def _bundle(bundle: BundleReport) -> list[str]:
    sign = "✅" if bundle.sound else "❌"
    on = f" on {plain(bundle.target)}" if bundle.target else ""
    lines = [f"## {plain(bundle.name)}{on}", "", f"{sign} {plain(bundle.verdict)}", ""]
    lines += [f"Compared on {plain(bundle.data)}.", ""]
    if bundle.evaluated:
        lines += [f"Accuracy on {plain(bundle.evaluated)}, against {plain(bundle.reference or 'nothing')}.", ""]
    lines += table(
        ("artifact", "comparison", "size", "median time", "top-1", "change", "agreement", "SNR", "integer ops"),
        (
            (
                row.name,
                "✅ passed" if row.passed else f"❌ {row.reason}",
                size(row.size_bytes),
                duration(row.latency.median.value) if row.latency else NONE,
                share(row.accuracy) or NONE,
                NONE if row.drop is None else points(-row.drop),
                share(row.agreement) or NONE,
                decibel(row.snr_db) or NONE,
                share(row.integer_share) or NONE,
            )
            for row in bundle.artifacts
        ),
        numbers=range(2, 9),
    )
    lines += [*(f"- {plain(gain)}" for gain in bundle.gains), ""] if bundle.gains else []
    lines += [f"- ❌ not made: {plain(failure)}" for failure in bundle.failures]
    lines += [f"- {plain(note)}" for note in bundle.notes]
    lines += [""] if bundle.failures or bundle.notes else []
    return [*lines, *_latency(bundle), *_damage(bundle), *_stages(bundle), *_sensitivity(bundle), *_environment(bundle)]


def _latency(bundle: BundleReport) -> list[str]:
    rows = [(a.name, a.latency) for a in bundle.artifacts if a.latency is not None]
    if not rows:
        return []
    return [
        "### Latency",
        "",
        *table(
            ("artifact", "median", "p90", "p99", "cold start", "peak memory", "measured on"),
            (
                (
                    name,
                    duration(told.median.value),
                    duration(told.p90.value) if told.p90 else NONE,
                    duration(told.p99.value) if told.p99 else NONE,
                    duration(told.cold_start.value) if told.cold_start else NONE,
                    size(told.memory_bytes),
                    f"{told.device}, {told.launches} launches",
                )
                for name, told in rows
            ),
            numbers=range(1, 6),
        ),
    ]


def _damage(bundle: BundleReport | Damage, by: str = "") -> list[str]:
    lines: list[str] = []
    hit = [row for row in bundle.classes if row.worst > 0]
    if hit:
        lines += [f"### Damage per class{by}", ""]
        lines += table(
            ("class", "samples", "original", *bundle.names),
            (
                (
                    row.name,
                    str(row.samples),
                    share(row.original),
                    *(NONE if d is None else points(-d) for d in row.drops),
                )
                for row in hit
            ),
            numbers=range(1, 3 + len(bundle.names)),
        )
    if bundle.groups:
        lines += [f"### Accuracy per group{by}", ""]
        lines += table(
            ("group", "samples", "original", *bundle.names),
            (
                (
                    f"{row.column} = {row.value}",
                    str(row.samples),
                    share(row.original) or NONE,
                    *(share(a) or NONE for a in row.accuracies),
                )
                for row in bundle.groups
            ),
            numbers=range(1, 3 + len(bundle.names)),
        )
    if bundle.changed:
        lines += [f"### Changed answers{by}", "", f"{bundle.changed_count} in all.", ""]
        for example in bundle.changed:
            label = f", label {example.label}" if example.label is not None else ""
            text = f" “{example.text}”" if example.text else ""
            after = "; ".join(f"{told} ({', '.join(names)})" for told, names in example.answers)
            lines.append(f"- {plain(f'sample {example.id}{text}{label}: {example.before} → {after}')}")
        lines.append("")
    return lines


def _stages(bundle: BundleReport) -> list[str]:
    return [] if bundle.stages is None else _damage(bundle.stages, " by the stages")


def _sensitivity(bundle: BundleReport) -> list[str]:
    lines = []
    for found in bundle.sensitivities:
        lines += [f"### Sensitivity per layer in {plain(found.precision)}", ""]
        lines += [f"All layers quantized: {decibel(found.all_db)}, on {found.samples} samples.", ""]
        rows = (
            (u.name, u.kind, decibel(u.alone_db), decibel(u.own_db), "yes" if u.kept else "no") for u in found.units
        )
        lines += table(("layer", "kind", "alone", "own result", "kept in float"), rows, numbers=(2, 3))
    return lines


def _environment(bundle: BundleReport) -> list[str]:
    rows = (("source", bundle.source), *bundle.recipe, *bundle.environment)
    return ["### Recipe and environment", "", *table(("", ""), rows)]
