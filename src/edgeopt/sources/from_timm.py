"""`timm:NAME`, `timm:NAME@weights.safetensors` or `timm:FOLDER`: an architecture of timm and its pretrained_cfg.

A folder is one that timm saved for the Hugging Face hub: `config.json` with weights beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeopt.core.errors import SourceError, UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.sources.from_weights import fit, read_checkpoint, read_safetensors, state_dict_in
from edgeopt.sources.request import Loaded, SourceRequest
from edgeopt.sources.torchvision_ops import import_torchvision
from edgeopt.sources.transformers_folder import read_json

import_torchvision()

import timm  # noqa: E402 - it imports torchvision, which must be made importable first
import timm.data  # noqa: E402

INTERPOLATION = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest", "lanczos": "lanczos"}
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FROM_FOLDER = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names", "fixed_input_size")


def load(request: SourceRequest) -> Loaded:
    """Build the architecture; nothing is downloaded, so weights come from a file or are random (said in `notes`).

    The number of classes and of input channels are those of the weights.

    Raises:
        UsageError: timm knows no such name, or the shape asked for is none of an image.
        SourceError: timm cannot build it, or the weights do not fit.
    """
    name, _, file = request.location.partition("@")
    folder = (request.folder / name).resolve()
    told: Mapping[str, Any] = {}
    if (folder / "config.json").is_file():
        name, told, path = _from_folder(folder)
    else:
        path = (request.folder / file).resolve() if file else None
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())[:200]}")
    if path is not None and not path.is_file():
        raise UsageError(f"{path}: no such file")
    weights = _read(path, request) if path is not None else {}
    module, channels = _build(name, weights, told, request)
    notes: tuple[str, ...] = ()
    if path is not None:
        fit(module, weights, path)
    else:
        notes = (f"{name} has random weights: name a file as timm:{name}@weights.safetensors",)
    own: Any = module.pretrained_cfg
    configuration = timm.data.resolve_data_config({}, pretrained_cfg={**own, **told}, model=module)
    height, width = configuration["input_size"][1:]
    shape = _shape(request) or (1, channels, height, width)
    spec = TensorSpec("image", shape, "float32", "NCHW")
    card = _card_options(configuration, shape) | (_labels(module, told) if weights else {})
    return Loaded(module.eval(), (spec,), (), card, notes, shaped=True)


def _from_folder(folder: Path) -> tuple[str, dict[str, Any], Path | None]:
    config = read_json(folder / "config.json")
    if not isinstance(config.get("architecture"), str):
        raise SourceError(f"{folder}/config.json: names no architecture of timm; try hf:{folder.name}")
    own = config.get("pretrained_cfg")
    told = {k: v for k, v in (own.items() if isinstance(own, dict) else ()) if k in FROM_FOLDER and v is not None}
    if isinstance(config.get("label_names"), list):
        told["label_names"] = config["label_names"]
    path = next((folder / n for n in FOLDER_WEIGHTS if (folder / n).is_file()), None)
    return config["architecture"], told, path


def _read(path: Path, request: SourceRequest) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return state_dict_in(read_checkpoint(path, trust=request.trust), path)


def _build(
    name: str, weights: Mapping[str, torch.Tensor], told: Mapping[str, Any], request: SourceRequest
) -> tuple[torch.nn.Module, int]:
    """Return the module and how many channels its image has."""
    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    known = known.to_dict() if known is not None else {}
    classifier, stem = known.get("classifier"), known.get("first_conv")
    head = weights.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    if head is not None and head.ndim >= 1 and head.shape[0] > 0:
        options["num_classes"] = head.shape[0]
    first = weights.get(f"{stem}.weight") if isinstance(stem, str) else None
    shape = _shape(request)
    if first is not None and first.ndim == 4:
        options["in_chans"] = first.shape[1]
    elif shape:
        options["in_chans"] = shape[1]
    if known.get("fixed_input_size"):
        size = shape[2:] if shape else tuple(told.get("input_size", known["input_size"]))[1:]
        if tuple(size) != tuple(known["input_size"])[1:]:
            options["img_size"] = tuple(size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: torch.nn.Module = timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise SourceError(f"timm cannot build {name}: {error}") from error
    return module, options.get("in_chans", known.get("input_size", (3,))[0])


def _shape(request: SourceRequest) -> tuple[int, ...]:
    shapes = request.shapes or tuple(i.shape for i in request.card.inputs)
    if not shapes:
        return ()
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UsageError(f"{request.spoken} has one input, [batch, channels, height, width]")
    return shapes[0]


def _labels(module: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class names: those of the configuration, else ImageNet's where the classes are ImageNet's."""
    count = getattr(module, "num_classes", 0)
    names = told.get("label_names") or module.pretrained_cfg.get("label_names")
    if not names and count == 1000 and not told:
        information = timm.data.ImageNetInfo()
        names = [information.index_to_description(i) for i in range(count)]
    if not names or len(names) != count:
        return {}
    unique = [n if names.index(n) == i else f"{n} ({i})" for i, n in enumerate(names)]
    return {"labels": tuple(str(n) for n in unique)}


def _card_options(configuration: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    height, width = shape[2:]
    ratio = configuration["crop_pct"]
    squashed = configuration.get("crop_mode") == "squash" or height != width
    grey = shape[1] == 1
    mean, std = (configuration[n][: 1 if grey else 3] for n in ("mean", "std"))
    return {
        "task": "image-classification",
        "preprocess": {
            "resize": (round(height / ratio), round(width / ratio)) if squashed else round(height / ratio),
            "crop": (height, width),
            "interpolation": INTERPOLATION.get(configuration["interpolation"], "bilinear"),
            "color": "gray" if grey else "rgb",
            "mean": tuple(255 * m for m in mean),
            "std": tuple(255 * s for s in std),
        },
    }
