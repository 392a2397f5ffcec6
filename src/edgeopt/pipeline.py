"""What the verbs do, each a short sequence: load once, export side by side, run every artifact, write the bundle."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeopt import steps, suppression
from edgeopt.bundle.folder import staged
from edgeopt.bundle.manifest import keep_beside, keep_logs, write_manifest
from edgeopt.compression import RecipeRun, compress
from edgeopt.context import Context
from edgeopt.conversion import Conversion
from edgeopt.core.errors import NothingExportedError, UsageError
from edgeopt.core.formats import FORMATS, format_named, format_of_file, require_precision
from edgeopt.core.quantization import QuantizationOptions
from edgeopt.core.recipe import Recipe
from edgeopt.core.settings import parse
from edgeopt.core.target import Target, load_target
from edgeopt.damage import keep_answers, stages_damage
from edgeopt.experiment import add_metrics, run_record
from edgeopt.gains import add_gains
from edgeopt.steps import Document, Plan, Source, workshop
from edgeopt.tracking import Tracker, require_tracker, track


def plan(formats: tuple[str, ...], precisions: tuple[str, ...], target: Target | None, **options: Any) -> Plan:
    """Settle what to make; what is not asked for comes from the target, else all four formats in fp32.

    Raises:
        UsageError: an unknown format or precision, or one that a format cannot do.
    """
    found = tuple(format_named(name) for name in dict.fromkeys(formats or (target.formats if target else FORMATS)))
    wanted = tuple(dict.fromkeys(precisions or ((target.precision,) if target else ("fp32",))))
    for form in found:
        for precision in wanted:
            require_precision(form, precision, target.coreml_deployment_target if target else "iOS17")
    if options.get("nms") and not any(form.suppresses for form in found):
        able = ", ".join(form.name for form in FORMATS.values() if form.suppresses)
        raise UsageError(f"--nms: of the formats, only {able} can hold non-maximum suppression; add --to {able}")
    return Plan(found, wanted, target, **options)


def convert(source: Source, what: Plan, out: Path, context: Context) -> Document:
    """Export `source` as planned, run every artifact, and write the bundle `out`; returns its manifest.

    A format that fails is listed under `failures` and does not lose the others.

    Raises:
        NothingExportedError: every format failed; the folder `out` is then as it was.
        EdgeoptError: the model, its data or the output folder cannot be used.
    """
    started = time.monotonic()
    with staged(out) as bundle, workshop(context, bundle) as work:
        prepared, artifacts, failures = Conversion(work, source, what, bundle).run()
        if not artifacts:
            raise NothingExportedError(failures)
        keep_logs(failures, bundle, out)
        keep_beside(work.folder, bundle)
        document = {
            "edgeopt": version("edgeopt"),
            "model": prepared["model"],
            "target": what.target.name if what.target else None,
            "data": prepared["data"],
            "artifacts": artifacts,
            "failures": failures,
            "seconds": round(time.monotonic() - started, 2),
        }
        write_manifest(bundle, document)
    return document


def run(job: RecipeRun, out: Path, context: Context, tracker: Tracker | None = None) -> Document:
    """Perform a recipe and write the bundle `out`; returns its manifest.

    The bundle also holds `run.json`, the record of the stages, and the compressed model as `<name>.pt2`. With a
    `tracker`, record and bundle are logged there once the bundle is written.

    Raises:
        NothingExportedError: every format failed; the folder `out` is then as it was.
        TrackingError: the tracker's store cannot be used; told before the work where it can be known.
        EdgeoptError: the model, its data, a stage or the output folder cannot be used.
    """
    started = time.monotonic()
    recipe = job.recipe
    target = load_target(recipe.export.target) if recipe.export.target else None
    what = recipe_plan(recipe, target)
    if tracker is not None:
        with workshop(context) as work:
            require_tracker(work, tracker)
    with staged(out) as bundle, workshop(context, bundle) as work:
        made = compress(work, job)
        result = Source(str(made.card), trust=job.trust)
        prepared, artifacts, failures = Conversion(work, result, what, bundle).run()
        if not artifacts:
            raise NothingExportedError(failures)
        keep_logs(failures, bundle, out)
        keep_beside(work.folder, bundle)
        shutil.copyfile(made.program, bundle / f"{made.opened['name']}.pt2")
        add_metrics(artifacts, made, what, prepared)
        add_gains(work, artifacts, made, what, bundle, prepared)
        seconds = round(time.monotonic() - started, 2)
        damage = stages_damage(made)
        keep_answers(work, made, damage, bundle)
        record = run_record(job, made, artifacts, seconds)
        record["per_slice"] = {"slices": damage["slices"], "hit_hardest": damage["slices_hit_hardest"]}
        (bundle / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        document = {
            "edgeopt": version("edgeopt"),
            "model": prepared["model"] | {"source": made.opened["source"], "file": f"{made.opened['name']}.pt2"},
            "target": target.name if target else None,
            "data": prepared["data"],
            "stages": made.records,
            "artifacts": artifacts,
            "failures": failures,
            "seconds": seconds,
        }
        write_manifest(bundle, document)
    if tracker is not None:
        with workshop(context) as work:
            track(work, tracker, record, out)
    return document


def recipe_plan(recipe: Recipe, target: Target | None) -> Plan:
    """Settle what files a recipe's result becomes.

    Raises:
        UsageError: an unknown precision, or one that a format cannot do.
    """
    quantize = recipe.quantize
    precisions = dict.fromkeys(recipe.export.precisions)
    options = QuantizationOptions()
    if quantize is not None:
        precisions[quantize.precision] = None
        chosen = quantize.model_dump(mode="json", exclude={"precision", "calibration_samples"})
        options = parse(QuantizationOptions, chosen, "quantize")
    return plan(
        recipe.export.formats,
        tuple(precisions),
        target,
        samples=recipe.export.samples,
        calibration_samples=quantize.calibration_samples if quantize else 100,
        quantization=options,
        compares_speed=recipe.export.compare_speed,
        nms=recipe.export.nms,
    )


def verify(
    artifact: Path,
    against: Source,
    what: Plan,
    context: Context,
    *,
    card: Path | None = None,
    locate_below_db: float | None = None,
) -> Document:
    """Run an artifact made by anyone and compare it with a model or with another artifact.

    `card` gives preprocessing, labels and task where the original is an artifact. With `locate_below_db`, the
    document names the first operator of a Core ML package whose result has a lower SNR.

    Raises:
        UsageError: it is no artifact that edgeopt can execute.
        ArtifactError: it cannot be executed.
    """
    form = steps.artifact_format(artifact)
    reference = format_of_file(Path(against.name))
    what = replace(what, calibration_samples=0)
    with workshop(context) as work:
        if reference is not None:
            prepared = steps.prepare_artifact(work, Path(against.name), reference, what, against.shapes, card)
        else:
            with work.worker_for(against) as worker:
                prepared = steps.prepare(work, worker, against, what)
                steps.run_reference(work, worker, prepared)
        precision = what.precisions[0]
        name = f"{form.name} {precision}"
        with work.worker(threads=1) as worker:
            inside = suppression.inside(artifact, prepared)
            ran = steps.execute(
                work, worker, name, form, artifact, prepared, precision, inside.outputs if inside else None
            )
            if inside is None:
                parity = steps.compare(work, name, artifact, prepared, what, precision, ran)
            else:
                suppression.suppress_reference(work, worker, prepared, inside.options)
                parity = suppression.compare(work, name, inside, prepared, what, precision, ran)
            document = {"artifact": str(artifact), "against": against.name, "data": prepared["data"], "parity": parity}
            if locate_below_db is not None:
                document["divergence"] = steps.locate(
                    work, worker, artifact, against.name, prepared, precision, locate_below_db
                )
        work.context.progress.finish(name, parity["reason"] or "verified", ok=parity["passed"])
    return document


def predict(
    artifacts: tuple[Path, ...],
    images: Path,
    out: Path,
    context: Context,
    *,
    card: Path | None = None,
    confidence: float | None = None,
    frames: int = 300,
) -> Document:
    """Run artifacts on an image, a folder of images or a video; pictures of what each finds are written to `out`.

    Raises:
        UsageError: no artifact, or nothing tells its task and preprocessing: no bundle around it and no card.
        DataError: no readable image or video.
    """
    for artifact in artifacts:
        steps.artifact_format(artifact)
    with staged(out) as folder, workshop(context, folder) as work:
        document = steps.predict(work, artifacts, images, folder, card, confidence, frames)
        write_manifest(folder, document)
    return document


def inspect(source: Source, context: Context) -> Document:
    """Return parameters, MACs, layers, inputs, outputs and operator counts of a model or an artifact.

    Raises:
        UsageError: no such file, or one that edgeopt does not read.
        ArtifactError, SourceError: the file is damaged.
    """
    with workshop(context) as work:
        if format_of_file(Path(source.name)) is not None:
            return steps.inspect_artifact(work, Path(source.name))
        return steps.inspect_source(work, source)


def diagnose(context: Context) -> Document:
    """Export and run a tiny model in every format; tells which backends are installed and really work."""
    with workshop(context) as work:
        source = steps.tiny_source(work.folder)
        what = Plan(tuple(FORMATS.values()), ("fp32",), samples=2)
        bundle = work.folder / "bundle"
        bundle.mkdir()
        _, artifacts, failures = Conversion(work, source, what, bundle).run()
    backends = []
    for form in FORMATS.values():
        failure = next((f for f in failures if f["format"] == form.name), None)
        parity = next((a["parity"] for a in artifacts if a["format"] == form.name), None)
        reason = failure["reason"] if failure else parity["reason"] if parity else None
        missing = steps.missing_packages(form)
        state = "not installed" if missing else "broken" if reason else "works"
        advice = f'pip install "edgeopt[{form.extra}]"' if missing else reason or ""
        if failure and failure["log"] and not missing:
            advice += f" (log: {failure['log']})"
        backends.append({"format": form.name, "state": state, "packages": " ".join(form.packages), "advice": advice})
    return {"backends": backends}
