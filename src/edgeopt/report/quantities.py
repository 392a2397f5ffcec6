"""How quantities are written, wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

EXACT_DB = 300.0
VERDICTS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "not measured": "not measured"}


def size(count: float) -> str:
    """Return bytes as people read them: `18.6 MB`."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def share(value: float | None) -> str:
    """Return a share in per cent; empty where it is not known."""
    return "" if value is None else f"{100 * value:.2f} %"


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points, signed."""
    if value is None:
        return ""
    return f"{100 * value:+.2f} pt" if round(100 * value, 2) else "0.00 pt"


def decibel(value: float | None) -> str:
    """Return a signal-to-noise ratio; `exact` where nothing differs."""
    return "" if value is None else "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def duration(ns: float) -> str:
    """Return nanoseconds as people read them: `1.42 ms`."""
    for unit, factor in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if ns < 1000 * factor:
            return f"{ns / factor:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def quantity(value: float | None, unit: str) -> str:
    """Return a measured value, a limit or a margin of a finding."""
    if value is None:
        return "–"
    if unit == "bytes":
        return size(value)
    if unit == "share":
        return f"{100 * value:.2f} %"
    if unit == "dB":
        return f"{value:.1f} dB"
    if unit == "ms":
        return f"{value:.3g} ms"
    return f"{value:.3f}" if unit == "ratio" else f"{value:g}"


def margin(finding: dict[str, Any]) -> str:
    """Return how far inside its limit a finding lies, signed; in points where it is a share."""
    value, unit = finding["margin"], finding["unit"]
    if value is None:
        return "–"
    if unit == "share":
        return points(value)
    if unit == "bytes":
        return ("+" if value >= 0 else "-") + size(abs(value))
    sign = "+" if value >= 0 else ""
    return sign + quantity(value, unit)


def one_line(text: object) -> str:
    """Return text without line ends and control characters: on a CI service, a line of a log can be a command."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def sentence(finding: dict[str, Any]) -> str:
    """Return one finding in one line."""
    unit = finding["unit"]

    def written(value: float) -> str:
        # Two sizes that read the same may lie on either side of a limit.
        return f"{value:,.0f} B" if unit == "bytes" else quantity(value, unit)

    limit = f"{finding['limit']} {written(finding['allowed'])}"
    told = f"{finding['artifact']}: {limit}: "
    if finding["measured"] is None:
        told += "not measured"
    else:
        told += f"measured {written(finding['measured'])}, margin {margin(finding)}"
    return one_line(told + (f" ({finding['detail']})" if finding["detail"] else ""))


def told_gains(artifacts: Iterable[dict[str, Any]]) -> list[str]:
    """Return for each artifact of a recipe what it won over the model as it came, in one line."""
    lines = []
    for artifact in artifacts:
        found = artifact.get("against_original")
        if not found:
            continue
        told = f"{artifact['format']}/{artifact['precision']}: {found['times_smaller']:.1f} times smaller"
        if found["times_as_fast"] is not None:
            told += f" and {found['times_as_fast']:.2f} times as fast here"
        drop = (artifact.get("metrics") or {}).get("drop")
        told += "" if drop is None else f", top-1 {points(-drop)}"
        of = f"{found['format']}/{found['precision']} file of the model as it came"
        lines.append(one_line(f"{told}, against the {of} ({size(found['size_bytes'])})"))
    return lines
