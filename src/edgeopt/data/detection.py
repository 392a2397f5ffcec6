"""Images with the boxes of the objects in them: COCO's `.json`, and YOLO's `data.yaml` with one `.txt` per image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgeopt.core.card import ModelCard
from edgeopt.core.detection import Truth
from edgeopt.core.errors import DataError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.core.settings import refuse_expansion
from edgeopt.data.image_file import SUFFIXES, decode_image, read_file
from edgeopt.data.labels import read_labels
from edgeopt.data.preprocess import ImagePreprocessor
from edgeopt.data.source import Sample, digest, settings_digest

MAX_FILE_BYTES = 2**30
SPLITS = ("val", "test", "train")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Entry:
    """One image: boxes are left, top, right, bottom, in pixels or, if `relative`, in shares of its sides."""

    name: str
    path: Path
    boxes: tuple[Box, ...]
    classes: tuple[int, ...]
    crowd: tuple[bool, ...]
    relative: bool


class DetectionData:
    """Images with boxes; `labels` are the classes by index."""

    kind = "detection"

    def __init__(
        self,
        path: Path,
        entries: list[_Entry],
        labels: tuple[str, ...],
        card: ModelCard,
        inputs: tuple[TensorSpec, ...],
        content: bytes,
    ) -> None:
        if not entries:
            raise DataError(f"{path}: lists no images")
        self.path = path
        self.labels: tuple[str, ...] | None = labels
        self._entries = entries
        self._preprocess = ImagePreprocessor(card.preprocess, inputs)
        self._identity = digest(settings_digest(card, inputs, labels), content, repr(entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self._entries[index]
        where = f"{self.path}: {entry.name}"
        image = decode_image(read_file(entry.path, where), where)
        height, width = image.shape[:2]
        sides = (width, height, width, height) if entry.relative else (1, 1, 1, 1)
        boxes = tuple((b[0] * sides[0], b[1] * sides[1], b[2] * sides[2], b[3] * sides[3]) for b in entry.boxes)
        truth = Truth((height, width), boxes, entry.classes, entry.crowd, self._preprocess.window((height, width)))
        return Sample(self._preprocess.pixels(image, where), None, entry.name, truth=truth)

    def fingerprint(self) -> str:
        """Return a sha256 over the boxes and preprocessing, with the images' sizes and times."""
        parts = []
        for entry in self._entries:
            try:
                status = entry.path.stat()
            except OSError as error:
                raise DataError(f"{self.path}: {entry.path}: {error.strerror}") from error
            parts.append(f"{status.st_size}:{status.st_mtime_ns}")
        return digest(self._identity, *parts)


def open_coco(path: Path, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> DetectionData:
    """Open COCO annotations; images lie beside the file or in `images/` there.

    Raises:
        DataError: damaged, no COCO file, a class that the card does not have, or an image outside the folder.
    """
    content = _read(path)
    try:
        document = json.loads(content)
        names = {int(c["id"]): str(c["name"]) for c in document["categories"]}
        images = {int(i["id"]): str(i["file_name"]) for i in document["images"]}
        annotations = [
            (int(a["image_id"]), int(a["category_id"]), tuple(float(v) for v in a["bbox"]), bool(a.get("iscrowd", 0)))
            for a in document["annotations"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a COCO file of images, annotations and categories: {error}") from error
    labels, indices = _classes(names, read_labels(card, base), path)
    found: dict[int, list[tuple[Box, int, bool]]] = {i: [] for i in images}
    for image, category, box, crowd in annotations:
        if image not in found or category not in indices or len(box) != 4 or not all(map(math.isfinite, box)):
            raise DataError(f"{path}: an annotation of image {image}, category {category} has no image, class or box")
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        found[image].append((corners, indices[category], crowd))
    root = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    entries = [_entry(name, _inside(root, name, path), found[i], relative=False) for i, name in images.items()]
    return DetectionData(path, entries, labels, card, inputs, content)


def open_yolo(path: Path, card: ModelCard, inputs: tuple[TensorSpec, ...], base: Path) -> DetectionData:
    """Open a `data.yaml` of ultralytics' form; the first of `val`, `test` and `train` counts.

    Its images lie under an `images` folder, their boxes under `labels` beside it; one without a file has no objects.

    Raises:
        DataError: damaged, an image outside the folder, or a line that is no box.
        UsageError: its aliases expand to more than anyone writes.
    """
    content = _read(path)
    try:
        document = yaml.safe_load(content)
        refuse_expansion(document, str(path))
        given = document["names"]
        names = {int(k): str(v) for k, v in (given.items() if isinstance(given, dict) else enumerate(given))}
        split = next(str(document[s]) for s in SPLITS if isinstance(document.get(s), str))
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(f"{path}: not a YOLO data file with names and val, test or train: {error}") from error
    except StopIteration as error:
        raise DataError(f"{path}: names no folder of images under val, test or train") from error
    labels, indices = _classes(names, read_labels(card, base), path)
    root = _root(path, document.get("path"))
    folder = _inside(root, split, path)
    if not folder.is_dir():
        raise DataError(f"{path}: {folder} is no folder of images")
    entries = []
    for image in sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES):
        parts = list(image.relative_to(root).parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        boxes = _yolo_boxes(root.joinpath(*parts).with_suffix(".txt"), indices, "kpt_shape" in document)
        entries.append(_entry(image.relative_to(folder).as_posix(), image, boxes, relative=True))
    return DetectionData(path, entries, labels, card, inputs, content)


def _yolo_boxes(path: Path, indices: dict[int, int], keypoints: bool) -> list[tuple[Box, int, bool]]:
    """Read `class x y w h` lines (centre and size, 0 to 1); a polygon's box is that around it."""
    if not path.is_file():
        return []
    found: list[tuple[Box, int, bool]] = []
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *values = (float(word) for word in line.split())
            if kind not in indices or not all(map(math.isfinite, values)):
                raise ValueError(f"class {kind:g} has no name" if kind not in indices else "no number")
            if len(values) > 4 and not keypoints:
                xs, ys = values[::2], values[1::2]
                box = (min(xs), min(ys), max(xs), max(ys))
            else:
                x, y, w, h = values[:4]
                box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: expected `class x y width height`: {error}") from error
        found.append((box, indices[int(kind)], False))
    return found


def _classes(
    names: dict[int, str], labels: tuple[str, ...] | None, path: Path
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return class names, and the class index that each of the data's own numbers stands for."""
    if labels is None:
        order = sorted(names)
        return tuple(names[i] for i in order), {number: index for index, number in enumerate(order)}
    if strange := [n for n in names.values() if n not in labels]:
        raise DataError(f"{path}: class {strange[0]!r} is no label of the model{did_you_mean(strange[0], labels)}")
    return labels, {number: labels.index(name) for number, name in names.items()}


def _entry(name: str, path: Path, found: list[tuple[Box, int, bool]], *, relative: bool) -> _Entry:
    boxes, classes, crowd = (tuple(part) for part in zip(*found, strict=True)) if found else ((), (), ())
    return _Entry(name, path, boxes, classes, crowd, relative)


def _root(path: Path, told: Any) -> Path:
    """Return the folder that a `data.yaml` starts from: the one it names where that lies beside it, else its own."""
    if isinstance(told, str) and (path.parent / told).is_dir() and not Path(told).is_absolute():
        inner = (path.parent / told).resolve()
        if inner.is_relative_to(path.parent.resolve()):
            return inner
    return path.parent.resolve()


def _inside(root: Path, name: str, path: Path) -> Path:
    try:
        found = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: {name!r} cannot be followed") from error
    if not found.is_relative_to(root.resolve()):
        raise DataError(f"{path}: {name!r} leads out of {root}")
    return found


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: is larger than {MAX_FILE_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
