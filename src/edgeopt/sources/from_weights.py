"""A file of weights (`.pt`, `.pth`, `.safetensors`) for an architecture given as `file.py:factory`."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from edgeopt.core.errors import SourceError, UnsafeFileError, UsageError
from edgeopt.sources.archives import refuse_bombs
from edgeopt.sources.from_code import build
from edgeopt.sources.request import Loaded, SourceRequest

MAX_UNPACKED_BYTES = 16 * 2**30
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "ema")


def load(request: SourceRequest) -> Loaded:
    """Build the architecture and put the weights in.

    Raises:
        UsageError: no architecture is named.
        UnsafeFileError: a checkpoint whose pickle holds more than tensors, without `trust`.
        SourceError: a damaged file, or weights that do not fit the architecture.
    """
    path = Path(request.location)
    if path.suffix == ".safetensors":
        weights = read_safetensors(path)
    else:
        found = read_checkpoint(path, trust=request.trust)
        if isinstance(found, torch.nn.Module):
            return Loaded(found.eval())
        weights = state_dict_in(found, path)
    if request.arch is None:
        raise UsageError(f"{path.name} holds weights only: name their architecture with --arch file.py:factory")
    module = build(request.arch)
    fit(module, weights, path)
    return Loaded(module.eval())


def read_checkpoint(path: Path, *, trust: bool) -> Any:
    """Read a torch checkpoint; without `trust` only tensors and plain containers are unpickled.

    Raises:
        UnsafeFileError: it holds something else.
        SourceError: it is damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                refuse_bombs(archive, path, MAX_UNPACKED_BYTES)
                damaged = archive.testzip()
            if damaged:
                raise SourceError(f"{path}: damaged: the checksum of {damaged} does not match")
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and ("GLOBAL" in str(error) or "Unsupported" in str(error)):
            raise UnsafeFileError(
                f"{path}: loading it could run code that it carries; save the state dict as .safetensors, "
                "or pass --trust-source if you trust whoever made it"
            ) from error
        raise SourceError(f"{path}: not a torch checkpoint, or a damaged one") from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise SourceError(f"{path}: not a torch checkpoint, or a damaged one") from error


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        SourceError: it is damaged.
    """
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, ValueError) as error:
        raise SourceError(f"{path}: not a safetensors file, or a damaged one: {error}") from error


def state_dict_in(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the state dict in what a checkpoint holds: itself, or under one of the usual keys.

    Raises:
        SourceError: there is none.
    """
    for _ in range(3):
        if isinstance(found, dict) and found and all(isinstance(v, torch.Tensor) for v in found.values()):
            return {str(k).removeprefix("module."): v for k, v in found.items()}
        if isinstance(found, dict):
            found = next((found[key] for key in WRAPPERS if key in found), None)
    places = ", ".join(WRAPPERS)
    raise SourceError(f"{path}: holds no state dict (a mapping of names to tensors, or one under {places})")


def fit(module: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights into a module.

    Raises:
        SourceError: names are missing or unknown, or a shape differs.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(weights))
    unknown = sorted(set(weights) - set(own))
    if missing or unknown:
        told = [f"{len(n)} {what}, first {n[0]}" for n, what in ((missing, "missing"), (unknown, "unknown")) if n]
        raise SourceError(f"{path}: weights do not fit the architecture: {'; '.join(told)}")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise SourceError(
                f"{path}: {name} has shape {list(weights[name].shape)}, the architecture wants {list(tensor.shape)}"
            )
    module.load_state_dict(weights)
