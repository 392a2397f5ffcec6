"""`timm:NAME` or `timm:NAME@weights.safetensors`: an architecture of timm, its data configuration as the card."""

from __future__ import annotations

import warnings
from typing import Any

from edgeopt.core.errors import SourceError, UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.sources.from_weights import fit, read_checkpoint, read_safetensors, state_dict_in
from edgeopt.sources.request import Loaded, SourceRequest
from edgeopt.sources.torchvision_ops import import_torchvision

import_torchvision()

import timm  # noqa: E402 - it imports torchvision, which must be made importable first
import timm.data  # noqa: E402

INTERPOLATION = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest", "lanczos": "lanczos"}


def load(request: SourceRequest) -> Loaded:
    """Build the architecture; nothing is downloaded, so weights come from a file or are random (said in `notes`).

    Raises:
        UsageError: timm knows no such name.
        SourceError: timm cannot build it, or the weights do not fit.
    """
    name, _, weights = request.location.partition("@")
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())[:200]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SourceError(f"timm cannot build {name}: {error}") from error
    notes: tuple[str, ...] = ()
    if weights:
        path = (request.folder / weights).resolve()
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path, trust=request.trust)
        fit(module, found if path.suffix == ".safetensors" else state_dict_in(found, path), path)
    else:
        notes = (f"{name} has random weights: name a file as timm:{name}@weights.safetensors",)
    configuration = timm.data.resolve_data_config({}, model=module)
    channels, height, width = configuration["input_size"]
    spec = TensorSpec("image", (1, channels, height, width), "float32", "NCHW")
    return Loaded(module.eval(), (spec,), (), _card_options(configuration), notes)


def _card_options(configuration: dict[str, Any]) -> dict[str, Any]:
    height, width = configuration["input_size"][1:]
    ratio = configuration["crop_pct"]
    return {
        "task": "image-classification",
        "preprocess": {
            "resize": round(height / ratio) if height == width else (round(height / ratio), round(width / ratio)),
            "crop": height if height == width else (height, width),
            "interpolation": INTERPOLATION.get(configuration["interpolation"], "bilinear"),
            "mean": tuple(255 * m for m in configuration["mean"]),
            "std": tuple(255 * s for s in configuration["std"]),
        },
    }
