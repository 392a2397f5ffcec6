"""What a recipe gained: its files against a float32 file of the model as it came."""

from __future__ import annotations

from pathlib import Path

from edgeopt import steps
from edgeopt.compression import Compressed
from edgeopt.core.errors import ArtifactError
from edgeopt.core.formats import FORMATS, Format
from edgeopt.steps import Document, Plan, Workshop


def add_gains(
    work: Workshop, artifacts: list[Document], made: Compressed, what: Plan, bundle: Path, prepared: Document
) -> None:
    """Give each artifact `against_original`: the original's file, and how many times smaller and as fast it is.

    The original is exported to ONNX, or to the first format that runs here where the recipe makes no ONNX file. Each
    artifact that runs here is timed against it in turns in one process, each in its own runtime on one thread. Where
    the original cannot be exported to that format, `against_original` is None.
    """
    for artifact in artifacts:
        artifact["against_original"] = None
    form = _reference(what)
    if form is None or not what.compares_speed:
        return
    arguments = {
        "program": str(made.dense / "model.pt2"),
        "inputs": made.opened["inputs"],
        "form": form.name,
        "inputs_folder": str(work.folder / "inputs"),
        "folder": str(work.folder / "original-file"),
    }
    with steps.dispensable():
        with work.worker(threads=1) as worker:
            task = "original_file:original_file"
            found = work.call(worker, "gain", task, arguments, what="exporting the original", failure=ArtifactError)
        for artifact in artifacts:
            artifact["against_original"] = {
                "format": form.name,
                "precision": "fp32",
                "size_bytes": found["bytes"],
                "times_smaller": round(found["bytes"] / artifact["size_bytes"], 3),
                "times_as_fast": _times_as_fast(work, artifact, bundle, form, Path(found["path"]), prepared),
            }
        work.context.progress.finish("gain", f"against {form.name} fp32 of the original", ok=True)


def _times_as_fast(
    work: Workshop, artifact: Document, bundle: Path, reference: Format, against: Path, prepared: Document
) -> float | None:
    form = FORMATS[artifact["format"]]
    if not form.runs_here:
        return None
    path = bundle / artifact["path"]
    with steps.dispensable(), work.worker(threads=1) as worker:
        found = steps.compare_speed(work, worker, "gain", form, path, against, prepared, against_form=reference)
        ratio: float = found["ratio"]
        return round(1 / ratio, 3)
    return None


def _reference(what: Plan) -> Format | None:
    runs = [form for form in what.formats if form.runs_here]
    return FORMATS["onnx"] if FORMATS["onnx"] in runs else next(iter(runs), None)
