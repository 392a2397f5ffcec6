"""A bar chart of what quantizing each unit costs, as one SVG file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Row = dict[str, Any]
WIDTH = 960
LABEL = 300
RIGHT = 150
TOP = 104
BAR = 14
PITCH = 22
CEILING_DB = 80.0
NAME_LENGTH = 40
# Okabe and Ito's palette: told apart by people with colour vision deficiencies.
COLOURS = {
    "convolution": "#0072b2",
    "transposed": "#56b4e9",
    "linear": "#009e73",
    "embedding": "#cc79a7",
    "matmul": "#d55e00",
}
OTHER = "#e69f00"
STYLE = """
  .paper { fill: #ffffff } .ink { fill: #1b1f24 } .faint { fill: #59636e } .line { stroke: #d1d9e0 }
  .kept { stroke: #1b1f24; stroke-width: 1.5 } .own { stroke: #1b1f24; stroke-width: 2 }
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif } .head { font-size: 16px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } .ink { fill: #e6edf3 } .faint { fill: #9198a1 } .line { stroke: #3d444d }
    .kept, .own { stroke: #e6edf3 }
  }
"""


def worst_first(sensitivity: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the units by the damage that each does alone: in decibels, a detector's in overlap of its boxes.

    Decibels of boxes in pixels say little of how well the boxes fit.
    """
    if sensitivity["metric"] == "overlap":
        return sorted(sensitivity["units"], key=lambda row: (-row["metric_drop"], row["sqnr_db"]))
    return sorted(sensitivity["units"], key=lambda row: row["sqnr_db"])


def sensitivity_svg(document: dict[str, Any], limit: int = 60) -> str:
    """Return the chart: one bar per unit, the most damaging first; the longer the bar, the worse.

    A bar ends at the signal-to-noise ratio of the network's output when that unit alone is quantized, on an axis that
    falls from left to right; a tick marks the same of the unit's own result. A unit kept in float is framed.

    Args:
        document: with `model` (a name), `precision`, `sensitivity` (`Sensitivity.to_json()`) and `keep_float` (names).
        limit: bars at most; the rest is said in a line.
    """
    sensitivity = document["sensitivity"]
    rows = worst_first(sensitivity)
    shown = rows[:limit]
    kept = set(document.get("keep_float") or ())
    bottom = TOP + PITCH * len(shown)
    height = bottom + (40 if len(rows) > len(shown) else 20)
    title = f"{document['model']}: damage of each unit in {document['precision']}"
    worst = shown[0]["name"] if shown else "none"
    told = (
        f"Output SQNR in decibels when one unit alone is quantized, {len(rows)} units on {sensitivity['samples']} "
        f"samples; {worst} does most damage. All units quantized: {sensitivity['quantized']['snr_db']:.1f} dB."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="chart-title chart-desc">',
        f'<title id="chart-title">{_text(title)}</title>',
        f'<desc id="chart-desc">{_text(told)}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="ink head" x="20" y="30">{_text(_short(title, 100))}</text>',
        f'<text class="faint" x="20" y="50">{_text(_subtitle(sensitivity))}</text>',
        *_legend(shown, bool(kept)),
        *_axis(shown, bottom),
    ]
    span = _span(shown)
    for index, row in enumerate(shown):
        parts += _bar(row, TOP + PITCH * index, span, sensitivity["metric"], row["name"] in kept)
    if len(rows) > len(shown):
        more = f"and {len(rows) - len(shown)} units that do less damage"
        parts.append(f'<text class="faint" x="{LABEL}" y="{bottom + 20}">{more}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _subtitle(sensitivity: Row) -> str:
    said = "output SQNR in dB, one unit quantized alone (longer is worse) · all units: "
    said += f"{sensitivity['quantized']['snr_db']:.1f} dB"
    after = sensitivity["quantized"]["metric"]
    after = sensitivity["quantized"]["agreement"] if after is None else after
    if sensitivity["metric"] is not None and after is not None:
        said += f", {sensitivity['metric']} {100 * after:.1f} %"
        if sensitivity["metric"] != "agreement":
            said += f" (float {100 * sensitivity['float_metric']:.1f} %)"
    return f"{said} · {sensitivity['samples']} samples"


def _legend(rows: Sequence[Row], any_kept: bool) -> list[str]:
    parts: list[str] = []
    x = 20
    kinds = list(dict.fromkeys(r["kind"] if r["kind"] in COLOURS else "other" for r in rows))
    for kind in sorted(kinds, key=[*COLOURS, "other"].index):
        parts.append(f'<rect x="{x}" y="64" width="12" height="12" rx="2" fill="{COLOURS.get(kind, OTHER)}"/>')
        parts.append(f'<text class="faint" x="{x + 17}" y="74">{kind}</text>')
        x += 34 + 7 * len(kind)
    if any_kept:
        parts.append(f'<rect class="kept" x="{x}" y="64" width="12" height="12" rx="2" fill="none"/>')
        parts.append(f'<text class="faint" x="{x + 17}" y="74">kept in float</text>')
        x += 34 + 7 * len("kept in float")
    parts.append(f'<line class="own" x1="{x + 5}" x2="{x + 5}" y1="63" y2="77"/>')
    parts.append(f'<text class="faint" x="{x + 13}" y="74">the unit\'s own result</text>')
    return parts


def _axis(rows: Sequence[Row], bottom: int) -> list[str]:
    span = _span(rows)
    step = 10 if span[0] - span[1] <= 60 else 20
    parts = []
    for tick in range(int(span[0]), int(span[1]) - 1, -step):
        x = _x(tick, span)
        parts.append(f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" x="{x:.1f}" y="{TOP - 10}" text-anchor="middle">{tick}</text>')
    return parts


def _bar(row: Row, y: int, span: tuple[float, float], metric: str | None, kept: bool) -> list[str]:
    colour = COLOURS.get(row["kind"], OTHER)
    length = max(_x(row["sqnr_db"], span) - LABEL, 2)
    own = _x(row["own_sqnr_db"], span)
    value = "exact" if row["sqnr_db"] >= 300 else f"{row['sqnr_db']:.1f}"
    drop = row["metric_drop"]
    said = f"{value} dB" if value != "exact" else value
    lost = "" if not drop else f" · {metric} {-100 * drop:+.1f} pt"
    tip = (
        f"{row['name']} ({row['kind']}): output {value} dB alone, {row['left_out_sqnr_db']:.1f} dB with all others, "
        f"own result {row['own_sqnr_db']:.1f} dB, {row['macs']:,} MACs, {row['parameters']:,} parameters"
    )
    if drop is not None:
        tip += f", {metric} drop {100 * drop:.2f} points"
    if kept:
        tip += ", kept in float"
    frame = ' class="kept"' if kept else ""
    middle = y + BAR - 3
    return [
        f"<g><title>{_text(tip)}</title>",
        f'<rect fill-opacity="0" x="0" y="{y - 4}" width="{WIDTH}" height="{PITCH}"/>',
        f'<text class="ink" x="{LABEL - 8}" y="{middle}" text-anchor="end">{_text(_short(row["name"]))}</text>',
        f'<rect{frame} x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
        f'<line class="own" x1="{own:.1f}" x2="{own:.1f}" y1="{y - 2}" y2="{y + BAR + 2}"/>',
        f'<text class="ink" x="{max(LABEL + length, own) + 6:.1f}" y="{middle}">{said}{_text(lost)}</text>',
        "</g>",
    ]


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the axis's left and right end, in dB; exact results do not stretch it."""
    values = [v for r in rows for v in (r["sqnr_db"], r["own_sqnr_db"]) if v < CEILING_DB]
    left = 10.0 * math.ceil(max([*values, 10.0]) / 10)
    right = 10.0 * math.floor(max(min([*values, left]), 0.0) / 10)
    return left, min(right, left - 10)


def _x(value: float, span: tuple[float, float]) -> float:
    left, right = span
    return LABEL + (WIDTH - LABEL - RIGHT) * (left - min(max(value, right), left)) / (left - right)


def _short(name: str, length: int = NAME_LENGTH) -> str:
    """Return the name with its middle left out where it is long: both ends tell layers apart."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _text(value: str) -> str:
    """Return text fit for XML: names of layers come from files of anyone."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value))
