"""A report as one HTML page that needs nothing but itself: no script, no request, no file beside it."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from edgeopt.report.charts import Point, histograms, pareto
from edgeopt.report.contents import BundleReport, Report, Sensitivity, Unit
from edgeopt.report.quantities import decibel, duration, margin, points, quantity, share, size

CEILING_DB = 80.0


def html_page(report: Report) -> str:
    """Return the page. Names, texts and messages come from files of anyone: every one of them is escaped."""
    folder = resources.files("edgeopt.report") / "templates"
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {
        "damage_share": _damage_share,
        "decibel": decibel,
        "duration": duration,
        "fastest": _fastest,
        "histograms": histograms,
        "key": _key,
        "margin": margin,
        "pareto": pareto,
        "points": points,
        "quantity": quantity,
        "sections": _sections,
        "share": share,
        "size": size,
        "smallest": _smallest,
    }
    environment.filters["breakable"] = _breakable
    template = environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
    style = Markup((folder / "report.css").read_text(encoding="utf-8"))  # the package's own file
    return template.render(report=report, css=style) + "\n"


def _breakable(text: str) -> Markup:
    """Return a name that may be broken behind its separators; it is escaped before they are marked."""
    marked = str(escape(text))
    for separator in "/_.":
        marked = marked.replace(separator, f"{separator}<wbr>")
    return Markup(marked)


def _sections(bundle: BundleReport) -> tuple[tuple[str, str, bool], ...]:
    return (
        ("artifacts", "Artifacts", True),
        ("gate", "Budget", bundle.gate is not None),
        ("pareto", "Accuracy, time and size", pareto(bundle.artifacts) is not None),
        ("latency", "Latency", bool(histograms(bundle.artifacts))),
        ("classes", "Damage per class", bool(bundle.class_count)),
        ("groups", "Groups", bool(bundle.groups)),
        ("changed", "Changed answers", bool(bundle.changed)),
        ("stages", "Changed by the stages", bundle.stages is not None),
        ("sensitivity", "Sensitivity", bool(bundle.sensitivities)),
        ("parity", "Comparison", True),
        ("recipe", "Recipe and environment", True),
    )


def _key(point: Point) -> Point:
    """Return the mark as it stands in the legend."""
    return replace(point, x=12.0, y=12.0, radius=8.0)


def _damage_share(unit: Unit, sensitivity: Sensitivity) -> float:
    """Return the length of a bar in per cent: from the least damage shown to the most."""
    values = [min(u.alone_db, CEILING_DB) for u in sensitivity.units]
    low, high = min(values), max(max(values), min(values) + 10)
    return 3 + 97 * (high - min(unit.alone_db, CEILING_DB)) / (high - low)


def _smallest(bundle: BundleReport) -> str:
    if not bundle.artifacts:
        return "–"
    found = min(bundle.artifacts, key=lambda a: a.size_bytes)
    return f"{size(found.size_bytes)} ({found.name})"


def _fastest(bundle: BundleReport) -> str:
    timed = [(a.latency.median.value, a.name) for a in bundle.artifacts if a.latency is not None]
    return f"{duration(min(timed)[0])} ({min(timed)[1]})" if timed else "–"
