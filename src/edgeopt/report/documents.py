"""Reads the documents that lie in a bundle into what a report says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeopt.report.contents import (
    ArtifactRow,
    BundleReport,
    Document,
    Interval,
    Latency,
    Sensitivity,
    Unit,
)
from edgeopt.report.damage import evaluation_damage, stages_damage
from edgeopt.report.quantities import told_gains

UNITS = 30


@dataclass(frozen=True)
class Documents:
    """What lies in a bundle's folder."""

    folder: str
    manifest: Document
    evaluation: Document | None = None
    benchmarks: Document | None = None
    gate: Document | None = None
    sensitivities: Sequence[Document] = field(default_factory=tuple)
    answers: Document | None = None
    recipe: str | None = None


def bundle_report(documents: Documents) -> BundleReport:
    """Read a bundle's documents.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: one of them is not what edgeopt writes.
    """
    manifest, evaluation = documents.manifest, documents.evaluation
    model, data = manifest["model"], manifest.get("data") or {}
    notes: list[str] = [str(n) for n in (data.get("note"), *(model.get("notes") or ())) if n]
    evaluated = _current(manifest, evaluation, notes)
    rows = tuple(_row(a, evaluated, documents.benchmarks) for a in manifest["artifacts"])
    names = tuple(r.name for r in rows)
    classes, class_count, groups, changed, count = evaluation_damage(evaluation, evaluated, names)
    reference = (evaluation or {}).get("reference") or {}
    return BundleReport(
        name=str(model["name"]),
        folder=documents.folder,
        target=manifest.get("target"),
        task=str(model.get("task") or "generic"),
        parameters=model.get("parameters"),
        license=model.get("license"),
        source=str(model.get("source") or ""),
        data=_told_data(data),
        evaluated=_told_evaluation(evaluation) if evaluated else None,
        reference=reference.get("name") if evaluated else None,
        artifacts=rows,
        failures=tuple(f"{f['format']} {f['precision']}: {f['reason']}" for f in manifest.get("failures") or ()),
        classes=classes,
        class_count=class_count,
        groups=groups,
        changed=changed,
        changed_count=count,
        stages=stages_damage(documents.answers),
        gains=tuple(told_gains(manifest["artifacts"])),
        sensitivities=tuple(_sensitivity(d) for d in documents.sensitivities),
        gate=documents.gate,
        environment=_environment(manifest, documents.benchmarks),
        recipe=_recipe(manifest),
        recipe_text=documents.recipe,
        notes=tuple(notes),
    )


def _current(manifest: Document, evaluation: Document | None, notes: list[str]) -> dict[str, Document]:
    """Return evaluated artifacts by name; those of other files than the manifest's are left out."""
    if evaluation is None:
        return {}
    sums = {a["path"]: a["sha256"] for a in manifest["artifacts"]}
    found = {}
    for entry in evaluation["artifacts"]:
        name = f"{entry['format']}/{entry['precision']}"
        if sums.get(entry["path"]) == entry["sha256"]:
            found[name] = entry
        else:
            notes.append(f"eval.json tells of another file of {name}; run edgeopt eval again")
    return found


def _row(artifact: Document, evaluated: dict[str, Document], benchmarks: Document | None) -> ArtifactRow:
    name = f"{artifact['format']}/{artifact['precision']}"
    parity = artifact["parity"]
    entry = evaluated.get(name) or {}
    against = entry.get("against") or {}
    metrics = entry.get("metrics") or {}
    accuracy, original = parity.get("top1"), parity.get("reference_top1")
    samples = parity.get("samples") or 0
    if "top1" in metrics:
        accuracy, samples = metrics["top1"], metrics["samples"]
        original = accuracy + against["drop"] if "drop" in against else None
    integers, floats = artifact.get("integer_ops"), artifact.get("float_ops")
    total = (integers or 0) + (floats or 0)
    return ArtifactRow(
        name=name,
        format=str(artifact["format"]),
        precision=str(artifact["precision"]),
        file=str(artifact["path"]),
        size_bytes=int(artifact["size_bytes"]),
        runtime=str(parity.get("runtime") or ""),
        snr_db=parity.get("snr_db"),
        cosine=parity.get("cosine"),
        agreement=against.get("agreement", parity.get("agreement")),
        parity_samples=int(parity.get("samples") or 0),
        parity_inputs="random inputs" if parity.get("inputs") == "random" else "samples",
        passed=bool(parity.get("passed")),
        reason=parity.get("reason"),
        accuracy=accuracy,
        original_accuracy=original,
        accuracy_samples=int(samples),
        metrics=metrics,
        lost=against.get("lost"),
        gained=against.get("gained"),
        integer_share=integers / total if integers is not None and total else None,
        latency=_latency(artifact, benchmarks),
        notes=tuple(str(n) for n in artifact.get("notes") or ()),
        not_quantized=tuple(str(n) for n in artifact.get("not_quantized") or ()),
        tools={str(k): str(v) for k, v in (artifact.get("tools") or {}).items()},
    )


def _latency(artifact: Document, benchmarks: Document | None) -> Latency | None:
    for record in (benchmarks or {}).get("measurements") or ():
        if record["artifact"]["sha256"] != artifact["sha256"]:
            continue
        summary = record["summary"]
        timed = [launch["samples"][0] for launch in record["launches"]]
        samples = [wall / s["inner_batch"] for s in timed for wall in s["wall_ns"]]
        return Latency(
            device=str(record["device"]),
            median=_interval(summary["median"]),
            p90=_interval(summary["p90"]) if summary.get("p90") else None,
            p99=_interval(summary["p99"]) if summary.get("p99") else None,
            cold_start=_interval(summary["cold_start"]) if summary.get("cold_start") else None,
            throughput_per_s=float(summary["throughput_per_s"]),
            memory_bytes=int(summary["peak_memory_bytes"]),
            launches=len(record["launches"]),
            samples=tuple(float(s) for s in samples),
            notes=tuple(str(n) for n in summary.get("notes") or ()),
        )
    return None


def _interval(record: Document) -> Interval:
    return Interval(float(record["value"]), record.get("low"), record.get("high"))


def _sensitivity(document: Document) -> Sensitivity:
    sensitivity = document["sensitivity"]
    kept = set(document.get("keep_float") or ())
    rows = sorted(sensitivity["units"], key=lambda r: float(r["sqnr_db"]))
    units = tuple(
        Unit(
            str(r["name"]),
            str(r["kind"]),
            float(r["sqnr_db"]),
            float(r["own_sqnr_db"]),
            r.get("metric_drop"),
            r["name"] in kept,
        )
        for r in rows[:UNITS]
    )
    return Sensitivity(
        precision=str(document["precision"]),
        samples=int(sensitivity["samples"]),
        all_db=float(sensitivity["quantized"]["snr_db"]),
        metric=sensitivity.get("metric"),
        units=units,
        more=max(0, len(rows) - UNITS),
    )


def _told_data(data: Document) -> str:
    if data.get("inputs") == "random" or not data:
        return f"{data.get('verified', 0)} random inputs: nothing is known of real ones"
    told = f"{data.get('verified')} samples of {data.get('source')}"
    if data.get("calibrated"):
        told += f", calibrated on {data['calibrated']} of {data.get('calibration_source') or data.get('source')}"
    return told


def _told_evaluation(evaluation: Document | None) -> str | None:
    if evaluation is None:
        return None
    data = evaluation["data"]
    note = f" ({data['note']})" if data.get("note") else ""
    return f"{data['verified']} samples of {data['source']}{note}"


def _environment(manifest: Document, benchmarks: Document | None) -> tuple[tuple[str, str], ...]:
    rows = [("edgeopt", str(manifest.get("edgeopt") or ""))]
    device = (benchmarks or {}).get("device") or {}
    if benchmarks is not None:
        rows.append(("measured on", str(benchmarks.get("on") or "")))
    for key, label in (("cpu", "processor"), ("cpus", "cores"), ("governor", "governor"), ("system", "system")):
        if device.get(key) is not None:
            rows.append((label, str(device[key])))
    if device.get("python"):
        rows.append(("Python", str(device["python"])))
    loads = [
        launch["environment"]["load_before"]
        for record in (benchmarks or {}).get("measurements") or ()
        for launch in record["launches"]
        if launch["environment"].get("load_before") is not None
    ]
    if loads:
        rows.append(("load while measured", f"{min(loads):.1f} to {max(loads):.1f}"))
    versions = {str(k): str(v) for k, v in (device.get("versions") or {}).items() if v}
    for artifact in manifest["artifacts"]:
        versions |= {str(k): str(v) for k, v in (artifact.get("tools") or {}).items()}
    return (*rows, *sorted(versions.items()))


def _recipe(manifest: Document) -> tuple[tuple[str, str], ...]:
    rows = []
    for precision in dict.fromkeys(a["precision"] for a in manifest["artifacts"]):
        artifacts = [a for a in manifest["artifacts"] if a["precision"] == precision]
        record = next((a["quantization"] for a in artifacts if a.get("quantization")), None)
        if record is None:
            rows.append((str(precision), "as exported"))
            continue
        options = ", ".join(f"{k} {_written(v)}" for k, v in (record.get("options") or {}).items())
        kept = ", ".join(record.get("keep_float") or ())
        rows.append((str(precision), options + (f"; kept in float: {kept}" if kept else "")))
    return tuple(rows)


def _written(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
