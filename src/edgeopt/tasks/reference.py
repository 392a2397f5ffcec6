"""Takes an artifact as the original that others are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt import plugins
from edgeopt.core.arrays import array_file
from edgeopt.core.card import ModelCard, Preprocess, read_card
from edgeopt.core.errors import UsageError
from edgeopt.core.model import Model, TensorSpec
from edgeopt.tasks.execute import execute
from edgeopt.tasks.samples import choose, store_inputs

KINDS = {"float64": "float32", "float16": "float32"}


def reference(
    *,
    artifact: str,
    runtime: str,
    data: str | None,
    samples: int,
    shapes: list[list[int]],
    card: str | None,
    folder: str,
) -> dict[str, Any]:
    """Write `inputs/` and `reference/` under `folder`; returns what `prepare` would.

    Args:
        artifact: its path.
        runtime: the plugin that executes it.
        data: a data source, or None for seeded noise.
        samples: to run.
        shapes: of the inputs, where the artifact leaves dimensions open.
        card: whose preprocessing, labels and task apply; without one, images are resized to the input and scaled
            to 0..1, which the record says.
        folder: to write to.

    Raises:
        UsageError: a dimension is open and no shape is given.
    """
    out = Path(folder)
    path = Path(artifact)
    session = plugins.find("runtimes", runtime).load(path, {})
    inputs = _fixed(session.inputs, shapes, path)
    told = read_card(Path(card)) if card else ModelCard(source=path.name, preprocess=_guess(inputs))
    model = Model(torch.nn.Identity(), inputs, told, path.stem, str(path), "")
    evaluation, _, origin = choose(model, data, Path(card).parent if card else Path.cwd(), samples, 0)
    if card is None and origin["inputs"] == "data":
        origin["note"] = "no card: images were resized to the input and scaled to 0..1"
    store_inputs(evaluation, inputs, out / "inputs")
    if card is None:
        (out / "inputs" / "labels.npy").unlink()  # on guessed preprocessing accuracy says nothing
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
            "task": told.task,
            "inputs": specs,
            "outputs": [s.to_json() for s in outputs],
        },
        "data": origin | {"calibration_sha256": None},
        "runtime": ran["runtime"],
    }


def _guess(inputs: tuple[TensorSpec, ...]) -> Preprocess:
    """Return preprocessing that makes an image fit the first input."""
    spec = inputs[0]
    if not spec.layout:
        return Preprocess()
    height, width = spec.shape[2:] if spec.layout == "NCHW" else spec.shape[1:3]
    channels = spec.shape[1 if spec.layout == "NCHW" else 3]
    return Preprocess(
        resize=(height, width),
        color="gray" if channels == 1 else "rgb",
        scale=1 / 255 if spec.dtype.startswith("float") else 1.0,
        layout="NCHW" if spec.layout == "NCHW" else "NHWC",
    )


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
    array = np.load(array_file(folder, spec.name), mmap_mode="r")
    return TensorSpec(spec.name, tuple(array.shape[1:]), array.dtype.name, spec.layout)
