"""What compression gained: files of a compressed model against a float32 file of the model as it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeopt.core.model import TensorSpec
from edgeopt.tasks.prune_speed import SpeedOfFiles
from edgeopt.tasks.speed import compare_speed
from edgeopt.training.network import to_network
from edgeopt.worker import report


def against_original(
    *,
    program: str,
    inputs: list[dict[str, Any]],
    form: str,
    artifacts: list[str],
    inputs_folder: str,
    folder: str,
    seconds: float,
) -> dict[str, Any]:
    """Export the original in float32 and time artifacts of the same format against the file, in turns on one thread.

    Args:
        program: the original, exported.
        inputs: specifications of its inputs.
        form: name of the format.
        artifacts: paths.
        inputs_folder: `<input>.npy` of shape (batches, *input shape).
        folder: to write to; it is made.
        seconds: to spend on each artifact.

    Returns:
        `bytes` of the original's file, and for each artifact `ratio` of the times and number of `pairs`.
    """
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    report("exporting the original")
    speed = SpeedOfFiles(to_network(torch.export.load(program)), specs, form, Path(inputs_folder), Path(folder))
    found = []
    for path in artifacts:
        report(f"timing {Path(path).name}")
        found.append(
            compare_speed(
                runtime=speed.format.runtime,
                artifact=path,
                against=str(speed.dense),
                inputs=inputs,
                outputs=[s.to_json() for s in speed.outputs],
                inputs_folder=inputs_folder,
                seconds=seconds,
            )
        )
    return {"bytes": speed.dense.stat().st_size, "speed": found}
