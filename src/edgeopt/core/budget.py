"""What a model may cost: limits of size, latency, memory, accuracy and parity, and their judgement as a value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from edgeopt.core.errors import UsageError
from edgeopt.core.formats import FORMATS, PRECISIONS
from edgeopt.core.paired import CHANCE, PairedAnswers
from edgeopt.core.settings import Settings, parse, read_mapping

Verdict = Literal["pass", "fail", "inconclusive", "not measured"]
Share = Annotated[float, Field(ge=0, lt=1)]
PositiveRatio = Annotated[float, Field(gt=0)]
PositiveBytes = Annotated[int, Field(gt=0)]
BASELINE = "baseline"


class SizeLimit(Settings):
    """Bytes of the artifact's file, or their ratio to the baseline's."""

    max_bytes: PositiveBytes | None = None
    max_ratio: PositiveRatio | None = None

    @model_validator(mode="after")
    def _says_something(self) -> SizeLimit:
        if self.max_bytes is None and self.max_ratio is None:
            raise ValueError("give max_bytes or max_ratio")
        return self


class LatencyLimit(Settings):
    """Time of one call relative to another artifact's, measured in turns; or in milliseconds on a device that is named.

    Attributes:
        against: `baseline` for the same artifact of the baseline bundle, or one of this bundle: `fp32` (of the same
            format) or `onnx/fp32`.
        max_ratio: of the two times.
        min_effect: an artifact that is slower by no more than this share never fails.
        max_ms: median of a warm call; counts only where `edgeopt bench` measured on `device`.
        device: the name under which it was measured.
    """

    against: str = BASELINE
    max_ratio: PositiveRatio | None = None
    min_effect: Annotated[float, Field(ge=0, lt=1)] = 0.025
    max_ms: PositiveRatio | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LatencyLimit:
        if self.max_ratio is None and self.max_ms is None:
            raise ValueError("give max_ratio, or max_ms with device")
        if self.max_ms is not None and self.device is None:
            raise ValueError("max_ms holds on one device only: name it with device")
        form, slash, precision = self.against.rpartition("/")
        if self.against != BASELINE and (precision not in PRECISIONS or (slash and form not in FORMATS)):
            raise ValueError(f"against is 'baseline', a precision or FORMAT/PRECISION; found {self.against!r}")
        return self

    def other(self, artifact: str) -> str:
        """Return what an artifact is compared with, as `FORMAT/PRECISION`."""
        if self.against == BASELINE or "/" in self.against:
            return artifact if self.against == BASELINE else self.against
        return f"{artifact.partition('/')[0]}/{self.against}"

    def is_about(self, artifact: str) -> bool:
        """Whether the artifact is itself what the others are compared with."""
        return self.against != BASELINE and self.other(artifact) == artifact


class MemoryLimit(Settings):
    """Peak resident memory while the artifact runs, as `edgeopt bench` measured it."""

    max_bytes: PositiveBytes


class DropLimit(Settings):
    """Accuracy of the original minus the artifact's, as a share: 0.01 is one point."""

    max: Share


class ParityLimit(Settings):
    """Signal-to-noise ratio of the artifact's outputs, in dB."""

    min: float


class CoverageLimit(Settings):
    """Share of operators that run on integers, of an artifact in an integer precision."""

    min: Annotated[float, Field(gt=0, le=1)]


class Limits(Settings):
    """One set of limits. A limit set to null under a target or an artifact lifts the general one.

    Attributes:
        artifacts: limits of some artifacts only, under `FORMAT/PRECISION`; `*` stands for any.
    """

    size: SizeLimit | None = None
    latency: LatencyLimit | None = None
    memory: MemoryLimit | None = None
    accuracy_drop: DropLimit | None = None
    worst_class_drop: DropLimit | None = None
    parity_snr_db: ParityLimit | None = None
    int8_coverage: CoverageLimit | None = None
    artifacts: Annotated[dict[str, Limits], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _one_level(self) -> Limits:
        for name, inner in self.artifacts.items():
            if name.count("/") != 1:
                raise ValueError(f"artifacts are named FORMAT/PRECISION, as in onnx/static_wi8_ai8; found {name!r}")
            if inner.artifacts:
                raise ValueError(f"artifacts: {name!r} holds artifacts again")
        return self

    def narrowed(self, other: Limits) -> Limits:
        """Return these limits, each replaced where `other` says something on it."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


@dataclass(frozen=True)
class LatencyEvidence:
    """A paired comparison that was judged against `max_ratio`; `low` and `high` bound the ratio."""

    verdict: Verdict
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Measurements:
    """What is known of one artifact; None where it was not measured.

    Attributes:
        name: `FORMAT/PRECISION`.
        file: its file's name.
        latency: the comparison with what the limit names.
        median_ms: median of a warm call, by the name of the device.
        answers: of the artifact and its original on the same labelled samples.
        per_class: the same by class.
        reasons: by limit: why something was not measured, or what to do about it.
    """

    name: str
    file: str = ""
    size_bytes: int | None = None
    baseline_bytes: int | None = None
    latency: LatencyEvidence | None = None
    median_ms: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    answers: PairedAnswers | None = None
    per_class: Mapping[str, PairedAnswers] = field(default_factory=dict)
    snr_db: float | None = None
    integer_ops: int | None = None
    float_ops: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether its precision runs on integers, so that coverage means something."""
        return self.name.partition("/")[2].startswith(("static", "dynamic", "auto"))


@dataclass(frozen=True)
class Finding:
    """One limit held against one artifact.

    Attributes:
        artifact: `FORMAT/PRECISION`.
        limit: its name in the budget, as in `size.max_bytes`.
        measured, allowed: in `unit`; None where nothing was measured.
        margin: how far inside the limit it lies, in `unit`; negative where it is exceeded.
        unit: `bytes`, `ratio`, `ms`, `share` or `dB`.
        detail: what the numbers do not say.
    """

    artifact: str
    limit: str
    verdict: Verdict
    measured: float | None
    allowed: float
    unit: str
    detail: str = ""
    file: str = ""

    @property
    def margin(self) -> float | None:
        """How far inside the limit; negative where it is exceeded."""
        if self.measured is None:
            return None
        at_least = self.limit.endswith(".min")
        return self.measured - self.allowed if at_least else self.allowed - self.measured

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "artifact": self.artifact,
            "file": self.file,
            "limit": self.limit,
            "verdict": self.verdict,
            "measured": self.measured,
            "allowed": self.allowed,
            "margin": self.margin,
            "unit": self.unit,
            "detail": self.detail,
        }


class Budget(Limits):
    """`budgets.yaml`: limits for every artifact; under the name of a target, those that differ there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Limits]

    def patterns(self, target: str | None = None) -> list[str]:
        """Return the names under `artifacts` that count for a target."""
        other = self.__pydantic_extra__.get(target) if target is not None else None
        return list(dict.fromkeys([*self.artifacts, *(other.artifacts if other else ())]))

    def limits_for(self, artifact: str, target: str | None = None) -> Limits:
        """Return the limits of an artifact, named `FORMAT/PRECISION`: general, then the target's, then its own."""
        levels: list[Limits] = [self]
        if target is not None and target in self.__pydantic_extra__:
            levels.append(self.__pydantic_extra__[target])
        found = Limits(artifacts={})
        for level in levels:
            found = found.narrowed(level)
            for pattern, own in level.artifacts.items():
                if fnmatchcase(artifact, pattern):
                    found = found.narrowed(own)
        return found

    def judge(self, measurements: Sequence[Measurements], target: str | None = None) -> list[Finding]:
        """Hold every artifact against every limit that applies to it."""
        return [
            finding
            for measured in measurements
            for finding in _findings(self.limits_for(measured.name, target), measured)
        ]

    def check(self, measurements: Sequence[Measurements], target: str | None = None) -> list[Finding]:
        """Return the limits that are exceeded, all of them; what could not be judged stands in `judge` only."""
        return [f for f in self.judge(measurements, target) if f.verdict == "fail"]


def read_budget(path: Path, targets: Sequence[str] = ()) -> Budget:
    """Read `budgets.yaml`.

    Args:
        path: the file.
        targets: names that limits may stand under, beside any that is near to no known name.

    Raises:
        UsageError: missing, malformed, an unknown key, or a limit that says nothing.
    """
    document = read_mapping(path)
    fields = list(Limits.model_fields)
    for name in document:
        near = difflib.get_close_matches(str(name), [*fields, *targets], n=1, cutoff=0.75)
        if near and name != near[0]:
            raise UsageError(f"{path}: unknown option {str(name)!r}; did you mean {near[0]!r}?")
        if name not in fields:
            parse(Limits, document[name], f"{path}: {name}")
    parse(Limits, {k: v for k, v in document.items() if k in fields}, str(path))
    try:
        budget = Budget.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{path}: {error.errors()[0]['msg']}") from error
    if not any(_says_anything(limits) for limits in (budget, *budget.__pydantic_extra__.values())):
        raise UsageError(f"{path}: holds no limit; known: {', '.join(f for f in fields if f != 'artifacts')}")
    return budget


def _says_anything(limits: Limits) -> bool:
    own = any(getattr(limits, n) is not None for n in Limits.model_fields if n != "artifacts")
    return own or any(_says_anything(inner) for inner in limits.artifacts.values())


def _findings(limits: Limits, own: Measurements) -> list[Finding]:
    found: list[Finding] = []

    def plain(limit: str, measured: float | None, allowed: float | None, unit: str) -> None:
        if allowed is None:
            return
        if measured is None or math.isnan(measured):
            reason = own.reasons.get(limit.partition(".")[0], "")
            found.append(Finding(own.name, limit, "not measured", None, allowed, unit, reason, own.file))
            return
        finding = Finding(own.name, limit, "pass", measured, allowed, unit, "", own.file)
        exceeded = finding.margin is not None and finding.margin < 0
        found.append(replace(finding, verdict="fail") if exceeded else finding)

    if limits.size is not None:
        plain("size.max_bytes", own.size_bytes, limits.size.max_bytes, "bytes")
        ratio = own.size_bytes / own.baseline_bytes if own.size_bytes and own.baseline_bytes else None
        plain("size.max_ratio", ratio, limits.size.max_ratio, "ratio")
    if limits.latency is not None:
        found += _latency(limits.latency, own)
    if limits.memory is not None:
        plain("memory.max_bytes", own.memory_bytes, limits.memory.max_bytes, "bytes")
    if limits.accuracy_drop is not None:
        found.append(_drop("accuracy_drop", limits.accuracy_drop, own, own.answers))
    if limits.worst_class_drop is not None:
        found.append(_worst_class(limits.worst_class_drop, own))
    if limits.parity_snr_db is not None:
        plain("parity_snr_db.min", own.snr_db, limits.parity_snr_db.min, "dB")
    if limits.int8_coverage is not None and own.quantized:
        counted = own.integer_ops is not None and own.float_ops is not None
        total = (own.integer_ops or 0) + (own.float_ops or 0)
        share = (own.integer_ops or 0) / total if counted and total else None
        plain("int8_coverage.min", share, limits.int8_coverage.min, "share")
    return found


def _latency(limit: LatencyLimit, own: Measurements) -> list[Finding]:
    found = []
    reason = own.reasons.get("latency", "")
    if limit.max_ratio is not None and not limit.is_about(own.name):
        told = own.latency or LatencyEvidence("not measured", detail=reason)
        found.append(
            Finding(
                own.name, "latency.max_ratio", told.verdict, told.ratio, limit.max_ratio, "ratio", told.detail, own.file
            )
        )
    if limit.max_ms is not None and limit.device is not None:
        median = own.median_ms.get(limit.device)
        verdict: Verdict = "not measured" if median is None else "fail" if median > limit.max_ms else "pass"
        detail = f"no measurement on {limit.device}; run edgeopt bench there" if median is None else limit.device
        found.append(Finding(own.name, "latency.max_ms", verdict, median, limit.max_ms, "ms", detail, own.file))
    return found


def _drop(
    name: str,
    limit: DropLimit,
    own: Measurements,
    answers: PairedAnswers | None,
    *,
    place: str = "",
    chance: float = CHANCE,
) -> Finding:
    """Judge a drop: beyond doubt it fails; above the limit within sampling noise it is inconclusive."""
    limit_name = f"{name}.max"
    if answers is None or not answers.samples:
        reason = own.reasons.get(name) or own.reasons.get("accuracy_drop", "")
        return Finding(own.name, limit_name, "not measured", None, limit.max, "share", reason, own.file)
    told = f"{place}{answers.lost} lost and {answers.gained} gained of {answers.samples}"
    verdict: Verdict = "pass"
    if answers.exceeds(limit.max, chance):
        verdict = "fail"
    elif answers.drop > limit.max:
        verdict = "inconclusive"
        told += f"; within sampling noise, about {answers.samples_needed(limit.max, chance):,} samples would settle it"
    return Finding(own.name, limit_name, verdict, answers.drop, limit.max, "share", told, own.file)


def _worst_class(limit: DropLimit, own: Measurements) -> Finding:
    """Judge every class; the worst verdict stands, and among equals the largest drop.

    The chance of a false failure is shared out between the classes, so that many classes do not add up to one.
    """
    if not own.per_class:
        return _drop("worst_class_drop", limit, own, None)
    chance = CHANCE / len(own.per_class)
    findings = [
        _drop("worst_class_drop", limit, own, answers, place=f"class {name}: ", chance=chance)
        for name, answers in own.per_class.items()
    ]
    order = {"fail": 0, "inconclusive": 1, "not measured": 2, "pass": 3}
    return min(findings, key=lambda f: (order[f.verdict], -(f.measured or 0.0)))
