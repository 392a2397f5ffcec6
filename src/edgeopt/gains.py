"""What a recipe gained: its files against a float32 file of the model as it came."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edgeopt.compression import Compressed
from edgeopt.core.errors import ArtifactError, EdgeoptError
from edgeopt.core.formats import FORMATS, Format
from edgeopt.steps import Document, Plan, Workshop

SECONDS = 2.0


def add_gains(work: Workshop, artifacts: list[Document], made: Compressed, what: Plan, bundle: Path) -> None:
    """Give each artifact `against_original`: the original's file, and how often smaller and as fast it is.

    The original is exported to ONNX, or to the first format that runs here where the recipe makes no ONNX file. Times
    are compared within that format only, on this host. Where the original cannot be exported to it, `against_original`
    is None.
    """
    for artifact in artifacts:
        artifact["against_original"] = None
    form = _reference(what)
    if form is None or not what.compares_speed:
        return
    timed = [a for a in artifacts if a["format"] == form.name]
    arguments = {
        "program": str(made.dense / "model.pt2"),
        "inputs": made.opened["inputs"],
        "form": form.name,
        "artifacts": [str(bundle / a["path"]) for a in timed],
        "inputs_folder": str(work.folder / "inputs"),
        "folder": str(work.folder / "original-file"),
        "seconds": SECONDS,
    }
    with contextlib.suppress(EdgeoptError), work.worker(threads=1) as worker:
        task = "original_file:against_original"
        found = work.call(worker, "gain", task, arguments, what="timing the original", failure=ArtifactError)
        ratios = {a["path"]: s["ratio"] for a, s in zip(timed, found["speed"], strict=True)}
        for artifact in artifacts:
            ratio = ratios.get(artifact["path"])
            artifact["against_original"] = {
                "format": form.name,
                "precision": "fp32",
                "size_bytes": found["bytes"],
                "times_smaller": round(found["bytes"] / artifact["size_bytes"], 3),
                "times_as_fast": None if ratio is None else round(1 / ratio, 3),
            }
        work.context.progress.finish("gain", f"against {form.name} fp32 of the original", ok=True)


def _reference(what: Plan) -> Format | None:
    runs = [form for form in what.formats if form.runs_here]
    return FORMATS["onnx"] if FORMATS["onnx"] in runs else next(iter(runs), None)
