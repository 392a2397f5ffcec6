"""Artifacts with non-maximum suppression inside: what they must give, and how near to it they come."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeopt import steps
from edgeopt.bundle.reading import recorded
from edgeopt.core.artifact import Export
from edgeopt.core.detection import DETECTIONS, DetectionOptions
from edgeopt.core.errors import SourceError
from edgeopt.core.model import TensorSpec
from edgeopt.steps import Document, Plan, Workshop
from edgeopt.worker import Worker

FOLDER = "suppressed"
"""Of the workshop: what the original's outputs become by suppression."""


@dataclass(frozen=True)
class Inside:
    """The suppression that an artifact holds.

    Attributes:
        options: of it, as JSON.
        outputs: the artifact's own, as JSON.
    """

    options: Document
    outputs: list[Document]

    @classmethod
    def of(cls, export: Export, options: DetectionOptions | None) -> Inside | None:
        """Return what an export put inside; None where nothing was asked for."""
        if options is None:
            return None
        return cls(options.model_dump(mode="json"), [s.to_json() for s in export.outputs])


def inside(artifact: Path, prepared: Document) -> Inside | None:
    """Return what an artifact's manifest says is inside, where the original has boxes and scores; else None."""
    entry = recorded(artifact) or {}
    if not entry.get("nms") or any(s["name"] == DETECTIONS for s in prepared["model"]["outputs"]):
        return None
    return Inside(entry["nms"], entry["outputs"])


def suppress_reference(work: Workshop, worker: Worker, prepared: Document, options: Document) -> None:
    """Make of the original's stored outputs what the suppression finds in them, by the code that bundles ship."""
    arguments = {
        "outputs": prepared["model"]["outputs"],
        "options": options,
        "inputs_folder": str(work.folder / "inputs"),
        "outputs_folder": str(work.folder / "reference"),
        "folder": str(work.folder / FOLDER),
    }
    what = f"suppressing boxes of {prepared['model']['name']}"
    work.call(worker, "original", "suppress:suppress", arguments, what=what, failure=SourceError)


def compare(
    work: Workshop, name: str, inside: Inside, prepared: Document, what: Plan, precision: str, ran: Document
) -> Document:
    """Compare an artifact's stored detections with those that suppression finds in the original's outputs."""
    from edgeopt.bench import detection_parity  # numpy is loaded only where arrays are compared
    from edgeopt.bench.parity import threshold_of

    work.context.progress.update(name, "comparing")
    folder = work.folder / steps.folder_named(name)
    result, counts = detection_parity.compare(
        work.folder / FOLDER,
        folder,
        tuple(TensorSpec.from_json(s) for s in inside.outputs),
        samples=prepared["data"]["verified"],
        runtime=ran["runtime"],
        inputs=prepared["data"]["inputs"],
        threshold=threshold_of(precision, what.min_snr_db, what.min_agreement),
    )
    shutil.rmtree(folder)
    return result.to_json() | {"detections": counts} | steps.told_beside(ran, work.folder / FOLDER)
