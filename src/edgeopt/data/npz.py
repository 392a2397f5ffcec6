"""NumPy archives: `x` and `y`, or one array per model input."""

from __future__ import annotations

import hashlib
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import DataError
from edgeopt.core.model import TensorSpec
from edgeopt.data.arrays import ArraySource, class_indices
from edgeopt.data.labels import read_labels
from edgeopt.data.source import Array

# numpy mends a header that does not parse by Python's tokenizer, which has its own errors.
_UNREADABLE_HEADER = (ValueError, SyntaxError, tokenize.TokenError)

LABEL_NAMES = ("label", "y")
MAX_BYTES = 2**32


def open_npz(path: Path, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> ArraySource:
    """Open a .npz file.

    It holds one array per model input, by name, or `x` for a model of one input; `label` or `y`, where present,
    holds one class index per sample. Other arrays are not read. Nothing in the file is unpickled.

    Args:
        path: the file.
        card: gives preprocessing and labels.
        inputs: the model's.
        base: the card's folder.

    Raises:
        DataError: damaged, no .npz, arrays missing, of objects, of unequal lengths, of a wrong shape or dtype, larger
            than 4 GiB together, or a label out of range.
    """
    names = {spec.name: spec.name for spec in inputs}
    try:
        identity = hashlib.sha256(path.read_bytes()).hexdigest()
        with zipfile.ZipFile(path) as archive:
            found = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            if len(inputs) == 1 and inputs[0].name not in found:
                names = {inputs[0].name: "x"}
            _require(names, found, path)
            label = next((n for n in LABEL_NAMES if n in found and n not in names.values()), None)
            wanted = [*names.values(), *([label] if label else [])]
            total = sum(found[n].file_size for n in wanted)
            if total > MAX_BYTES:
                raise DataError(f"{path}: its arrays unpack to {total / 2**30:.1f} GiB; the limit is 4 GiB")
            arrays = {n: _array(archive, found[n], f"{path}: {n}") for n in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a readable .npz: {error}") from error
    samples = len(arrays[wanted[0]])
    for name, array in arrays.items():
        if len(array) != samples:
            raise DataError(f"{path}: {name} has {len(array)} samples where {wanted[0]} has {samples}")
    if not samples:
        raise DataError(f"{path}: {wanted[0]} has no samples")
    labels = read_labels(card, base)
    classes = class_indices(arrays[label], labels, f"{path}: {label}") if label else None
    fed = {name: arrays[stored] for name, stored in names.items()}
    places = {name: f"{path}: {stored}" for name, stored in names.items()}
    return ArraySource("npz", fed, classes, labels, card, inputs, places, identity)


def _require(names: dict[str, str], found: dict[str, zipfile.ZipInfo], path: Path) -> None:
    if missing := [stored for stored in names.values() if stored not in found]:
        wanted = " or ".join(dict.fromkeys((*names, *names.values())) if len(names) == 1 else (missing[0],))
        holds = ", ".join(sorted(found)[:10]) or "no arrays"
        raise DataError(f"{path}: no array called {wanted}; it holds {holds}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Array:
    with archive.open(member) as stream:
        shape, dtype = _header(stream, where)
        if dtype.hasobject:
            raise DataError(
                f"{where}: an array of Python objects, which would have to be unpickled; save plain numbers"
            )
        if not shape:
            raise DataError(f"{where}: a single value; expected an array with the samples first")
        # Allocated by what is there, not by what the header claims.
        if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > member.file_size:
            raise DataError(f"{where}: shape {list(shape)} claims more data than the file holds")
    with archive.open(member) as stream:
        try:
            return npy.read_array(stream, allow_pickle=False)
        except _UNREADABLE_HEADER as error:
            raise DataError(f"{where}: not a NumPy array: {error}") from error


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
    except _UNREADABLE_HEADER as error:
        raise DataError(f"{where}: not a NumPy array: {error}") from error
    return shape, dtype
