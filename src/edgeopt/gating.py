"""One gate: what is known of a bundle is held against its budget; a size-only gate needs no runtime at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from edgeopt.bundle.reading import Bundle, artifact_name
from edgeopt.cache import file_sha256
from edgeopt.core.budget import BASELINE, Budget, Finding, LatencyEvidence, LatencyLimit, Measurements
from edgeopt.core.errors import EdgeoptError, UsageError
from edgeopt.core.paired import PairedAnswers

Document = dict[str, Any]
Compare = Callable[[Path, Path, LatencyLimit], LatencyEvidence]
Outcome = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Gate:
    """What a gate found.

    Attributes:
        bundle, baseline: their folders.
        model: its name.
        target: whose limits applied.
        findings: every limit held against every artifact.
        notes: what the limits do not say.
    """

    bundle: Path
    baseline: Path | None
    model: str
    target: str | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def violations(self) -> list[Finding]:
        """The limits that are exceeded."""
        return [f for f in self.findings if f.verdict == "fail"]

    @property
    def unjudged(self) -> list[Finding]:
        """What could not be judged."""
        return [f for f in self.findings if f.verdict in ("inconclusive", "not measured")]

    def outcome(self, inconclusive: Literal["pass", "fail"] | None = None) -> Outcome:
        """Return the verdict on the whole; `inconclusive` says what becomes of what could not be judged."""
        if self.violations:
            return "fail"
        return (inconclusive or "inconclusive") if self.unjudged else "pass"

    def to_json(self, inconclusive: Literal["pass", "fail"] | None = None) -> Document:
        """Return JSON types only."""
        return {
            "model": self.model,
            "bundle": str(self.bundle),
            "baseline": str(self.baseline) if self.baseline else None,
            "target": self.target,
            "verdict": self.outcome(inconclusive),
            "violations": [f.to_json() for f in self.violations],
            "unjudged": [f.to_json() for f in self.unjudged],
            "passed": [f.to_json() for f in self.findings if f.verdict == "pass"],
            "notes": list(self.notes),
        }


def gate(
    bundle: Bundle,
    budget: Budget,
    *,
    baseline: Bundle | None = None,
    target: str | None = None,
    compare: Compare | None = None,
) -> Gate:
    """Hold every artifact of a bundle against the limits that apply to it.

    Args:
        bundle: the artifacts.
        budget: the limits.
        baseline: an earlier bundle, that `max_ratio` and `against: baseline` mean.
        target: whose limits apply; the one that the bundle was made for where None.
        compare: measures two files in turns and judges their ratio; None where nothing can be measured here.

    Raises:
        UsageError: an artifact is missing, or is not the file that the manifest describes.
    """
    told = bundle.manifest.get("target")
    target = target or (str(told) if told else None)
    findings = budget.judge([_measured(bundle, a, budget, baseline, target, compare) for a in bundle.artifacts], target)
    names = [artifact_name(a) for a in bundle.artifacts]
    for pattern in budget.patterns(target):
        if not any(fnmatchcase(name, pattern) for name in names):
            reason = f"the bundle holds no such artifact, only {', '.join(names) or 'none'}"
            findings.append(Finding(pattern, "artifacts", "not measured", None, 1, "count", reason))
    failures = bundle.manifest.get("failures") or []
    notes = [f"{f['format']} {f['precision']} was not made: {f['reason']}" for f in failures]
    notes += [
        f"{artifact_name(a)} failed its comparison with the original: {a['parity']['reason']}"
        for a in bundle.artifacts
        if not a["parity"].get("passed", True)
    ]
    if not findings:
        notes.append("no limit of the budget applies to an artifact of this bundle")
    return Gate(
        bundle=bundle.folder,
        baseline=baseline.folder if baseline else None,
        model=str(bundle.manifest["model"]["name"]),
        target=target,
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _measured(
    bundle: Bundle,
    artifact: Document,
    budget: Budget,
    baseline: Bundle | None,
    target: str | None,
    compare: Compare | None,
) -> Measurements:
    path, name = bundle.path(artifact), artifact_name(artifact)
    if not path.exists():
        raise UsageError(f"{path}: no such file, though the manifest lists it")
    if file_sha256(path) != artifact["sha256"]:
        raise UsageError(f"{path}: is not the file that the manifest describes; convert again")
    limits = budget.limits_for(name, target)
    reasons: dict[str, str] = {}
    earlier = baseline.find(name) if baseline else None
    absent = f"{baseline.folder} holds no {name}" if baseline else "give --baseline BUNDLE"
    if limits.size and limits.size.max_ratio is not None and earlier is None:
        reasons["size"] = absent
    latency = None
    if limits.latency is not None and limits.latency.max_ratio is not None:
        latency = _latency(bundle, name, path, limits.latency, baseline, absent, compare)
    answers, per_class = _answers(bundle, artifact, reasons)
    measured = _benchmarks(bundle, artifact)
    if limits.memory is not None and measured is None:
        reasons["memory"] = "run edgeopt bench on the bundle"
    parity = artifact["parity"]
    return Measurements(
        name=name,
        file=str(path),
        size_bytes=_size(path),
        baseline_bytes=int(earlier["size_bytes"]) if earlier else None,
        latency=latency,
        median_ms=measured["median_ms"] if measured else {},
        memory_bytes=measured["memory_bytes"] if measured else None,
        answers=answers,
        per_class=per_class,
        snr_db=parity.get("snr_db"),
        integer_ops=artifact.get("integer_ops"),
        float_ops=artifact.get("float_ops"),
        reasons=reasons | ({"int8_coverage": "its runtime does not count its operators"}),
    )


def _latency(
    bundle: Bundle,
    name: str,
    path: Path,
    limit: LatencyLimit,
    baseline: Bundle | None,
    absent: str,
    compare: Compare | None,
) -> LatencyEvidence | None:
    """Measure an artifact against what the limit names; None where that is the artifact itself."""
    other = limit.other(name)
    home = baseline if limit.against == BASELINE else bundle
    if limit.is_about(name):
        return None
    entry = home.find(other) if home else None
    if home is None or entry is None:
        return LatencyEvidence("not measured", detail=absent if limit.against == BASELINE else f"no {other} in it")
    against = home.path(entry)
    if not against.exists():
        return LatencyEvidence("not measured", detail=f"{against}: no such file")
    if compare is None:
        return LatencyEvidence("not measured", detail="latency is not measured here (--no-measure)")
    try:
        return compare(path, against, limit)
    except EdgeoptError as error:
        if error.exit_code == 130:
            raise
        return LatencyEvidence("not measured", detail=str(error))


def _answers(
    bundle: Bundle, artifact: Document, reasons: dict[str, str]
) -> tuple[PairedAnswers | None, dict[str, PairedAnswers]]:
    """Return paired answers of `eval.json`, else what the manifest's parity tells of them."""
    document = bundle.companion("eval.json")
    entry: Document | None = None
    if document is not None:
        same = [a for a in document.get("artifacts", []) if a.get("path") == artifact["path"]]
        entry = next((a for a in same if a.get("sha256") == artifact["sha256"]), None)
        if same and entry is None:
            reasons["accuracy_drop"] = "eval.json is of another file; run edgeopt eval again"
    against = (entry or {}).get("against") or {}
    if "lost" in against:
        rows = against.get("per_class") or []
        per_class = {str(r["name"]): PairedAnswers(r["samples"], r["lost"], r["gained"]) for r in rows}
        return PairedAnswers(against["samples"], against["lost"], against["gained"]), per_class
    reasons.setdefault("accuracy_drop", "no labelled samples; run edgeopt eval --data FILE on the bundle")
    reasons.setdefault("worst_class_drop", "run edgeopt eval on the bundle")
    return _answers_of_parity(artifact["parity"]), {}


def _answers_of_parity(parity: Document) -> PairedAnswers | None:
    """Return the paired answers that accuracies and agreement allow, with as many changes as there can be.

    More changes mean more noise, so that a failure is never called on evidence that is not there.
    """
    top1, reference, samples = parity.get("top1"), parity.get("reference_top1"), parity.get("samples")
    if top1 is None or reference is None or not samples:
        return None
    difference = round((reference - top1) * samples)
    changed = max(abs(difference), round((1 - (parity.get("agreement") or 0.0)) * samples))
    lost = (changed + difference) // 2
    return PairedAnswers(samples, lost, lost - difference)


def _benchmarks(bundle: Bundle, artifact: Document) -> Document | None:
    """Return median time by device and the peak memory that `edgeopt bench` measured; None where it did not."""
    document = bundle.companion("bench.json") or {}
    found: Document = {"median_ms": {}, "memory_bytes": None}
    for record in document.get("measurements") or []:
        if record["artifact"]["sha256"] != artifact["sha256"]:
            continue
        found["median_ms"][str(record["device"])] = record["summary"]["median"]["value"] / 1e6
        found["memory_bytes"] = max(int(launch["peak_memory_bytes"]) for launch in record["launches"])
    return found if found["median_ms"] else None


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
