"""Data to calibrate with, to compare on and to judge by: one `DataSource` whatever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.data.source import DataSource, Sample, sample_indices

__all__ = ["BUILTINS", "DataSource", "Sample", "is_builtin", "open_data", "sample_indices"]

BUILTINS = ("digits", "mnist5k", "sentences")

# File suffix → module and opener; a module is imported when a file asks for it.
_OPENERS = {
    ".csv": ("table", "Table"),
    ".tsv": ("table", "Table"),
    ".jsonl": ("table", "Table"),
    ".ndjson": ("table", "Table"),
    ".npz": ("npz", "open_npz"),
    ".zip": ("image_folder", "ImageFolder"),
    ".json": ("detection", "open_coco"),
    ".yaml": ("detection", "open_yolo"),
    ".yml": ("detection", "open_yolo"),
}


def open_data(name: str, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> DataSource:
    """Open the data called `name` for a model.

    Args:
        name: `sentences` (texts), `digits` or `mnist5k` (with `:train` or `:test`), an image folder, or a .zip,
            .csv, .tsv, .jsonl, .npz, .json (COCO) or .yaml (YOLO) file. A relative path starts at `base`; write
            `./digits` for a folder of such a name.
        card: preprocessing, labels and task.
        inputs: the model's inputs, with the batch dimension.
        base: the card's folder; its labels and tokenizer are looked up there too.

    Raises:
        UsageError: no such file or built-in set, or a kind of file that holds no data.
        DataError: the data cannot be used; names the file and the row.
        MissingBackendError: a package that reads it is not installed.
    """
    if name == "sentences":
        return _opener("sentences", "Sentences")(card, inputs, base)
    if is_builtin(name):
        return _opener("builtin", "open_builtin")(name, card, inputs, base)
    path = base / name
    if path.is_dir():
        return _opener("image_folder", "ImageFolder")(path, card, inputs, base)
    suffix = path.suffix.lower()
    if not path.exists():
        hint = "" if suffix in _OPENERS else did_you_mean(name, BUILTINS).replace("; known:", "; built-in sets:")
        raise UsageError(f"{path}: no such file or folder{hint}")
    if suffix not in _OPENERS:
        raise UsageError(f"{path}: not a kind of data{did_you_mean(suffix, _OPENERS)}, or an image folder")
    if not path.is_file():
        raise UsageError(f"{path}: not a regular file")
    return _opener(*_OPENERS[suffix])(path, card, inputs, base)


def is_builtin(name: str) -> bool:
    """Tell whether `name` is a built-in set rather than a path."""
    return name.partition(":")[0] in BUILTINS


def _opener(module: str, function: str) -> Callable[..., DataSource]:
    return cast("Callable[..., DataSource]", getattr(import_module(f"edgeopt.data.{module}"), function))
