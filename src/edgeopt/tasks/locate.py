"""Names the operator of a Core ML package where it departs from its original."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeopt.core.arrays import array_file
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.exporters.program import load_program
from edgeopt.mil import Evaluator, load_package
from edgeopt.mil.divergence import against_exported, against_program
from edgeopt.runtimes.adapter import Adapter
from edgeopt.runtimes.run_coreml import ReferenceSession


def locate(
    *,
    artifact: str,
    original: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    inputs_folder: str,
    threshold_db: float,
    precision: Literal["fp32", "fp16"],
) -> dict[str, Any]:
    """Compare result by result on the first stored batch.

    Args:
        artifact: a Core ML package.
        original: the `.pt2` program it was made from, or its float twin as a package.
        inputs, outputs: the original's specifications.
        inputs_folder: `<input>.npy` of shape (batches, *input shape).
        threshold_db: below which a result counts as diverged.
        precision: of the evaluation, `fp32` or `fp16`.

    Raises:
        UsageError: the original is neither.
        ParityError: no result has a counterpart by name.
    """
    session = ReferenceSession(Evaluator(load_package(Path(artifact)), precision))
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    adapter = Adapter(session, specs, tuple(TensorSpec.from_json(s) for s in outputs))
    batch = {s.name: np.array(np.load(array_file(inputs_folder, s.name), mmap_mode="r")[0]) for s in specs}
    fed = adapter.feed(batch)
    if original.endswith(".pt2"):
        found = against_exported(session.evaluator, load_program(original), fed, threshold_db)
    elif original.endswith(".mlpackage"):
        found = against_program(session.evaluator, Evaluator(load_package(Path(original)), "fp32"), fed, threshold_db)
    else:
        raise UsageError(f"{original}: operators are compared with a PyTorch model or another Core ML package only")
    return {
        "summary": found.summary(),
        "first": asdict(found.first) if found.first else None,
        "worst_losses": [asdict(pair) for pair in found.worst_losses],
        "compared": len(found.pairs),
        "unpaired": found.unpaired,
        "threshold_db": threshold_db,
    }
