"""Class names of a model card, and the class index that a cell, a key or a folder name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import DataError, did_you_mean

INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def read_labels(card: ModelCard, base: Path) -> tuple[str, ...] | None:
    """Return the card's class names: those it lists, or the lines of the file it names.

    Args:
        card: its `labels` is a list of names or a UTF-8 text file with one name per line.
        base: the card's folder.

    Raises:
        DataError: the file is missing, empty, no text, or a name is empty or stands twice.
    """
    if card.labels is None:
        return None
    if isinstance(card.labels, str):
        path = base / card.labels
        names = _lines(path)
        where = [f"{path}: line {number}" for number in range(1, len(names) + 1)]
    else:
        names = tuple(card.labels)
        where = [f"model card: label {index}" for index in range(len(names))]
    if not names:
        raise DataError(f"{base / card.labels if isinstance(card.labels, str) else 'model card'}: no labels in it")
    seen: dict[str, str] = {}
    for name, place in zip(names, where, strict=True):
        if not name:
            raise DataError(f"{place}: the label is empty")
        if name in seen:
            raise DataError(f"{place}: label {name!r} stands already at {seen[name]}")
        seen[name] = place
    return names


def class_index(value: str, labels: tuple[str, ...] | None, where: str) -> int:
    """Return the class that `value` stands for: an integer is an index, anything else a label's name.

    Raises:
        DataError: neither, or an index that the labels do not reach.
    """
    text = value.strip()
    if INTEGER.fullmatch(text):
        return in_range(int(text), labels, where)
    if labels is None:
        raise DataError(f"{where}: label {_short(text)} is not an integer, and the model card has no labels")
    if text not in labels:
        raise DataError(
            f"{where}: label {_short(text)} is neither an integer nor a label of the card{_near(text, labels)}"
        )
    return labels.index(text)


def in_range(index: int, labels: tuple[str, ...] | None, where: str) -> int:
    """Return `index` if it can be a class index.

    Raises:
        DataError: negative, or not below the number of labels.
    """
    if index < 0 or (labels is not None and index >= len(labels)):
        upper = f"to {len(labels) - 1}" if labels is not None else "or more"
        raise DataError(f"{where}: label {index} is out of range; expected 0 {upper}")
    return index


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; the model card's labels name it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: labels cannot be read: {error}") from error
    return tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()


def _near(text: str, labels: tuple[str, ...]) -> str:
    hint = did_you_mean(text, labels)
    return hint if hint.startswith("; did you mean") or len(labels) <= 20 else f"; it has {len(labels)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
