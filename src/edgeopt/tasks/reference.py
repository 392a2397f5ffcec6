"""Takes an artifact as the original that others are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt import plugins
from edgeopt.core.card import ModelCard
from edgeopt.core.errors import UsageError
from edgeopt.core.model import Model, TensorSpec
from edgeopt.tasks.execute import execute
from edgeopt.tasks.samples import choose, store_inputs

KINDS = {"float64": "float32", "float16": "float32"}


def reference(
    *, artifact: str, runtime: str, data: str | None, samples: int, shapes: list[list[int]], folder: str
) -> dict[str, Any]:
    """Write `inputs/` and `reference/` under `folder`; returns what `prepare` would.

    Args:
        artifact: its path.
        runtime: the plugin that executes it.
        data: a data source, or None for seeded noise.
        samples: to run.
        shapes: of the inputs, where the artifact leaves dimensions open.
        folder: to write to.

    Raises:
        UsageError: a dimension is open and no shape is given.
    """
    out = Path(folder)
    path = Path(artifact)
    session = plugins.find("runtimes", runtime).load(path, {})
    inputs = _fixed(session.inputs, shapes, path)
    card = ModelCard(source=path.name)
    model = Model(torch.nn.Identity(), inputs, card, path.stem, str(path), "")
    evaluation, _, origin = choose(model, data, Path.cwd(), samples, 0)
    store_inputs(evaluation, inputs, out / "inputs")
    specs = [s.to_json() for s in inputs]
    ran = execute(
        runtime=runtime,
        artifact=artifact,
        inputs=specs,
        outputs=[s.to_json() for s in session.outputs],
        inputs_folder=str(out / "inputs"),
        folder=str(out / "reference"),
        options={},
    )
    outputs = [_stored(s, out / "reference") for s in session.outputs]
    return {
        "model": {
            "name": path.stem,
            "source": str(path),
            "task": card.task,
            "inputs": specs,
            "outputs": [s.to_json() for s in outputs],
        },
        "data": origin | {"calibration_sha256": None},
        "runtime": ran["runtime"],
    }


def _fixed(own: tuple[TensorSpec, ...], shapes: list[list[int]], path: Path) -> tuple[TensorSpec, ...]:
    if shapes and len(shapes) != len(own):
        raise UsageError(f"{path} has {len(own)} inputs, --input-shape gives {len(shapes)}")
    fixed = []
    for index, spec in enumerate(own):
        shape = tuple(shapes[index]) if shapes else (1 if spec.shape[:1] == (-1,) else spec.shape[0], *spec.shape[1:])
        if -1 in shape:
            raise UsageError(f"{path}: input {spec.name} has open dimensions {list(spec.shape)}: give --input-shape")
        dtype = "float32" if spec.scale is not None else KINDS.get(spec.dtype, spec.dtype)
        fixed.append(TensorSpec(spec.name, shape, dtype, spec.layout))
    return tuple(fixed)


def _stored(spec: TensorSpec, folder: Path) -> TensorSpec:
    array = np.load(folder / f"{spec.name}.npy", mmap_mode="r")
    return TensorSpec(spec.name, tuple(array.shape[1:]), array.dtype.name, spec.layout)
