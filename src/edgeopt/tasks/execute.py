"""Runs an artifact on stored inputs and stores its outputs, shaped and typed as the original's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import plugins
from edgeopt.core.arrays import array_file
from edgeopt.core.model import TensorSpec
from edgeopt.runtimes.adapter import Adapter
from edgeopt.tasks.detect import score
from edgeopt.worker import report


def execute(
    *,
    runtime: str,
    artifact: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    inputs_folder: str,
    folder: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Write `<output>.npy` of shape (batches, *output shape) under `folder`, and `metrics.json` where truth is known.

    Args:
        runtime: the plugin that executes the artifact.
        artifact: its path.
        inputs, outputs: the original's specifications, that the artifact's are matched with.
        inputs_folder: `<input>.npy` of shape (batches, *input shape).
        folder: to write to.
        options: of the runtime.
    """
    plugin = plugins.find("runtimes", runtime)
    session = plugin.load(Path(artifact), options)
    wanted = tuple(TensorSpec.from_json(s) for s in outputs)
    adapter = Adapter(session, tuple(TensorSpec.from_json(s) for s in inputs), wanted)
    stored = {s["name"]: np.load(array_file(inputs_folder, s["name"]), mmap_mode="r") for s in inputs}
    count = len(next(iter(stored.values())))
    out = Path(folder)
    out.mkdir(parents=True)
    arrays: dict[str, np.memmap[Any, Any]] = {}
    started = time.perf_counter()
    for index in range(count):
        results = adapter({name: np.array(array[index]) for name, array in stored.items()})
        if not arrays:
            arrays = {
                name: np.lib.format.open_memmap(array_file(out, name), "w+", value.dtype, (count, *value.shape))
                for name, value in results.items()
            }
        for name, value in results.items():
            arrays[name][index] = value
        if index % 8 == 0:
            report(f"verifying {index}/{count}")
    for array in arrays.values():
        array.flush()
    metrics = score(Path(inputs_folder), out, wanted)
    return {
        "runtime": plugin.NAME,
        "inputs": [s.to_json() for s in session.inputs],
        "outputs": [s.to_json() for s in session.outputs],
        "seconds": time.perf_counter() - started,
        "notes": list(getattr(session, "notes", ())),
        "metrics": metrics,
    }


def describe(*, runtime: str, artifact: str) -> dict[str, Any]:
    """Load an artifact and return its input and output specifications."""
    session = plugins.find("runtimes", runtime).load(Path(artifact), {})
    return {"inputs": [s.to_json() for s in session.inputs], "outputs": [s.to_json() for s in session.outputs]}
