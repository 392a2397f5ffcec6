"""Stores labelled inputs for a model known by its description alone, and draws small pictures of some of them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from edgeopt.core.arrays import array_file
from edgeopt.core.card import ModelCard, Preprocess
from edgeopt.core.model import Model, TensorSpec
from edgeopt.core.settings import parse
from edgeopt.tasks.samples import choose, store_inputs

THUMBNAIL = 96


def collect(
    *,
    name: str,
    task: str,
    inputs: list[dict[str, Any]],
    preprocess: dict[str, Any],
    labels: list[str] | None,
    data: str,
    base: str,
    samples: int,
    skip_fingerprint: str | None,
    skip: int,
    folder: str,
) -> dict[str, Any]:
    """Write `inputs/` under `folder`; returns a record of the data.

    Args:
        name, task, inputs, preprocess, labels: of the model, as a bundle's manifest has them.
        data: a data source; a relative path starts at `base`, where a tokenizer is looked up too.
        base: the bundle's folder.
        samples: to store.
        skip: how many of the first samples have calibrated, and are left out if enough remain.
        skip_fingerprint: of the data that it holds for; None where that is this data.
        folder: to write to.
    """
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    described = {"source": name, "task": task, "preprocess": preprocess, "labels": labels}
    card = parse(ModelCard, {k: v for k, v in described.items() if v is not None}, base)
    model = Model(torch.nn.Identity(), specs, card, name, name, "")
    evaluation, _, record = choose(model, data, Path(base), samples + skip, 0)
    indices = list(evaluation.indices)
    if skip and skip_fingerprint in (None, record.get("fingerprint")):
        if len(indices) > skip:
            indices = indices[skip:]
            record["note"] = f"the {skip} samples that calibrated are left out"
        else:
            record["note"] = "evaluated on samples that also calibrated: the data holds too few for both"
    chosen = type(evaluation)(indices[:samples], evaluation.read)
    labelled = store_inputs(chosen, specs, Path(folder) / "inputs")
    return record | {"verified": len(chosen.indices), "labelled": labelled}


def thumbnails(
    *, inputs: list[dict[str, Any]], preprocess: dict[str, Any], indices: list[int], folder: str
) -> dict[str, str]:
    """Return PNG pictures, as `data:` addresses, of stored inputs by their index; none where the input is no image.

    Args:
        inputs: the model's.
        preprocess: what made the inputs; it is undone.
        indices: of the samples.
        folder: that they are stored in.
    """
    spec = TensorSpec.from_json(inputs[0])
    if len(spec.shape) != 4 or len(inputs) != 1:
        return {}
    settings = parse(Preprocess, preprocess, "preprocess")
    stored = np.load(array_file(Path(folder), spec.name), mmap_mode="r")
    found = {}
    for index in indices:
        image = np.array(stored[index // spec.shape[0], index % spec.shape[0]], np.float64)
        if settings.layout == "NCHW":
            image = image.transpose(1, 2, 0)
        if image.shape[-1] not in (1, 3):
            return {}
        pixels = (image * np.array(settings.std) + np.array(settings.mean)) / (settings.scale or 1.0)
        pixels = np.clip(np.nan_to_num(pixels), 0, 255).astype(np.uint8)
        if settings.color == "rgb" and pixels.shape[-1] == 3:
            pixels = pixels[..., ::-1]
        scale = THUMBNAIL / max(pixels.shape[:2])
        if scale < 1:
            size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        written, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))
        if written:
            found[str(index)] = "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
    return found
