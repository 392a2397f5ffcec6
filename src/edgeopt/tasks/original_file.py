"""A float32 file of the model as it came, to hold files of the compressed one against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeopt.core.model import TensorSpec
from edgeopt.tasks.prune_speed import SpeedOfFiles
from edgeopt.training.network import to_network
from edgeopt.worker import report


def original_file(
    *, program: str, inputs: list[dict[str, Any]], form: str, inputs_folder: str, folder: str
) -> dict[str, Any]:
    """Export the original in float32; returns the file's `path` and its `bytes`.

    Args:
        program: the original, exported.
        inputs: specifications of its inputs.
        form: name of the format.
        inputs_folder: `<input>.npy` of shape (batches, *input shape).
        folder: to write to; it is made.
    """
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    report("exporting the original")
    files = SpeedOfFiles(to_network(torch.export.load(program)), specs, form, Path(inputs_folder), Path(folder))
    return {"path": str(files.dense), "bytes": files.dense.stat().st_size}
