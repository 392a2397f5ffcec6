"""Geometry of a report's charts: numbers that the page's template draws, so that every text stays escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeopt.report.contents import ArtifactRow
from edgeopt.report.quantities import duration, size

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 104, 28, 20, 60
BINS = 40
HISTOGRAM = (220, 48)
SHAPES = {"onnx": "circle", "litert": "square", "coreml": "diamond", "executorch": "triangle"}


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One artifact on the plot.

    Attributes:
        x, y: of its centre.
        radius: its area grows with the size of the file.
        shape: `circle`, `square`, `diamond` or `triangle`, by format.
        colour: index of its precision.
        best: whether no other is better in one respect and as good in all others.
    """

    number: int
    name: str
    x: float
    y: float
    radius: float
    shape: str
    colour: int
    best: bool
    told: str
    label_y: float = 0.0

    @property
    def outline(self) -> str:
        """The corners of a shape that is no circle, for an SVG polygon."""
        r = self.radius
        corners = {
            "square": ((-0.89, -0.89), (0.89, -0.89), (0.89, 0.89), (-0.89, 0.89)),
            "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
            "triangle": ((0, -1.3), (1.2, 0.85), (-1.2, 0.85)),
        }.get(self.shape, ())
        return " ".join(f"{self.x + r * dx:.1f},{self.y + r * dy:.1f}" for dx, dy in corners)


@dataclass(frozen=True)
class Plot:
    """Artifacts by what they cost and what they are worth."""

    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    front: str
    left_out: tuple[str, ...]
    summary: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Histogram:
    """The distribution of one artifact's times on the axis that all share."""

    path: str
    median: float
    width: int
    height: int
    told: str


def pareto(artifacts: Sequence[ArtifactRow]) -> Plot | None:
    """Return accuracy over latency, the area of a mark showing the size; None below two artifacts.

    Where fewer than two artifacts were timed, the size is the cost. Where no accuracy is known, agreement with the
    original, else the signal-to-noise ratio, is the worth.
    """
    timed = [a for a in artifacts if a.latency is not None]
    by_time = len(timed) >= 2
    cost = {a.name: a.latency.median.value if by_time and a.latency else float(a.size_bytes) for a in artifacts}
    value, y_label, unit = _worth(artifacts)
    shown = [a for a in (timed if by_time else artifacts) if value[a.name] is not None and cost[a.name] > 0]
    if len(shown) < 2:
        return None
    worth = {a.name: float(value[a.name] or 0.0) for a in shown}
    best = _front(shown, cost, worth)
    xs = _log_axis([cost[a.name] for a in shown])
    ys = _axis([worth[a.name] for a in shown], 0.01 if unit == "%" else 6.0, 1.0 if unit == "%" else None)
    precisions = list(dict.fromkeys(a.precision for a in artifacts))
    largest = max(a.size_bytes for a in shown)
    write = duration if by_time else size
    points = []
    for number, artifact in enumerate(shown, 1):
        told = f"{write(cost[artifact.name])}, {_value(worth[artifact.name], unit)}, {size(artifact.size_bytes)}"
        points.append(
            Point(
                number,
                artifact.name,
                _x(cost[artifact.name], xs),
                _y(worth[artifact.name], ys),
                9 + 11 * math.sqrt(artifact.size_bytes / largest),
                SHAPES.get(artifact.format, "circle"),
                precisions.index(artifact.precision) % 6,
                artifact.name in best,
                told,
            )
        )
    along = sorted((p for p in points if p.best), key=lambda p: p.x)
    names = ", ".join(p.name for p in along)
    return Plot(
        x_label="median time of one call (logarithmic)" if by_time else "size of the file (logarithmic)",
        y_label=y_label,
        x_ticks=tuple(Tick(_x(v, xs), write(v)) for v in _log_ticks(xs)),
        y_ticks=tuple(Tick(_y(v, ys), _value(v, unit)) for v in _ticks(ys)),
        points=_apart(points),
        front=" ".join(f"{p.x:.1f},{p.y:.1f}" for p in along),
        left_out=tuple(a.name for a in artifacts if a not in shown),
        summary=f"{len(points)} artifacts by {'time' if by_time else 'size'} and {y_label}. None is better in every "
        f"respect than: {names}.",
    )


def histograms(artifacts: Sequence[ArtifactRow]) -> dict[str, Histogram]:
    """Return one histogram per timed artifact, by name; the axis is logarithmic and the same for all."""
    timed = {a.name: sorted(a.latency.samples) for a in artifacts if a.latency is not None and a.latency.samples}
    if not timed:
        return {}
    width, height = HISTOGRAM
    low = min(samples[0] for samples in timed.values())
    # The slowest half per cent are accidents of the host; they would press everything else into the first bins.
    high = max(samples[min(len(samples) - 1, int(len(samples) * 0.995))] for samples in timed.values())
    a, b = math.log(max(low, 1.0)), math.log(max(high, low * 1.2, 2.0))
    found = {}
    for artifact in artifacts:
        if artifact.latency is None or artifact.name not in timed:
            continue
        counts = [0] * BINS
        beyond = 0
        for value in timed[artifact.name]:
            place = int((math.log(max(value, 1.0)) - a) / (b - a) * BINS)
            if place > BINS:
                beyond += 1
            else:
                counts[max(0, min(place, BINS - 1))] += 1
        top = max(counts) or 1
        steps = [f"M0,{height}"]
        for index, count in enumerate(counts):
            y = height - (height - 4) * count / top
            steps.append(f"L{index * width / BINS:.1f},{y:.1f} L{(index + 1) * width / BINS:.1f},{y:.1f}")
        median = (math.log(max(artifact.latency.median.value, 1.0)) - a) / (b - a) * width
        samples = timed[artifact.name]
        told = f"{len(samples)} calls from {duration(samples[0])} to {duration(samples[-1])}"
        told += f"; axis {duration(math.exp(a))} to {duration(math.exp(b))}, logarithmic"
        told += f"; {beyond} slower ones are not drawn" if beyond else ""
        found[artifact.name] = Histogram(
            " ".join([*steps, f"L{width},{height} Z"]), min(max(median, 0.0), float(width)), width, height, told
        )
    return found


def _worth(artifacts: Sequence[ArtifactRow]) -> tuple[dict[str, float | None], str, str]:
    if any(a.accuracy is not None for a in artifacts):
        return {a.name: a.accuracy for a in artifacts}, "top-1 accuracy", "%"
    if any(a.agreement is not None for a in artifacts):
        return {a.name: a.agreement for a in artifacts}, "agreement with the original", "%"
    return {a.name: a.snr_db for a in artifacts}, "signal-to-noise ratio", "dB"


def _front(shown: Sequence[ArtifactRow], cost: dict[str, float], worth: dict[str, float]) -> set[str]:
    """Return the artifacts that no other dominates in cost, worth and size."""
    keys = {a.name: (cost[a.name], -worth[a.name], float(a.size_bytes)) for a in shown}
    return {
        a
        for a, own in keys.items()
        if not any(all(o <= m for o, m in zip(other, own, strict=True)) and other != own for other in keys.values())
    }


def _apart(points: list[Point]) -> tuple[Point, ...]:
    """Return the points, the smaller ones last so that they lie on top, with numbers that do not cover each other."""
    placed: list[tuple[float, float]] = []
    found = []
    for point in sorted(points, key=lambda p: -p.radius):
        y = point.y - point.radius - 7
        while any(abs(point.x - x) < 18 and abs(y - other) < 15 for x, other in placed):
            y -= 15
        if y < TOP:  # no room above: below, downwards
            y = point.y + point.radius + 17
            while any(abs(point.x - x) < 18 and abs(y - other) < 15 for x, other in placed):
                y += 15
        placed.append((point.x, y))
        found.append(replace(point, label_y=y))
    return tuple(found)


def _value(value: float, unit: str) -> str:
    return f"{100 * value:.2f} %" if unit == "%" else f"{value:.1f} dB"


def _axis(values: Sequence[float], least: float, ceiling: float | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(least - (high - low), 0.0) / 2 + 0.1 * max(high - low, least)
    low, high = low - room, high + room
    if ceiling is not None and high > ceiling + room:
        low, high = low - (high - ceiling - room), ceiling + room
    return low, high


def _ticks(span: tuple[float, float]) -> list[float]:
    raw = (span[1] - span[0]) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.99)
    first = math.ceil(span[0] / step)
    return [i * step for i in range(first, int(span[1] / step + 1e-9) + 1)]


def _log_axis(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log(min(values)), math.log(max(values))
    room = max(0.12 * (high - low), 0.15)
    return low - room, high + room


def _log_ticks(span: tuple[float, float]) -> list[float]:
    low, high = math.exp(span[0]), math.exp(span[1])
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
        if len(found) >= 3:
            return found[:8]
    return [low * (high / low) ** (i / 3) for i in range(4)]


def _x(value: float, span: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(value) - span[0]) / (span[1] - span[0])


def _y(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - span[0]) / (span[1] - span[0])
