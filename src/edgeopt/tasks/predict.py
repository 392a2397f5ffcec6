"""Runs artifacts on pictures that people look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeopt import plugins
from edgeopt.bench.detections import find
from edgeopt.bundle.folder import MANIFEST
from edgeopt.bundle.reading import recorded
from edgeopt.core.card import Preprocess, read_card
from edgeopt.core.detection import TASKS, DetectionOptions
from edgeopt.core.errors import DataError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.settings import parse
from edgeopt.data.image_file import SUFFIXES, decode_image, read_file
from edgeopt.data.labels import read_labels
from edgeopt.data.letterbox import to_image
from edgeopt.data.preprocess import ImagePreprocessor
from edgeopt.runtimes.adapter import Adapter
from edgeopt.tasks.draw import beside, draw_boxes, draw_keypoints, draw_masks, draw_ranking, enlarged
from edgeopt.worker import report

VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})
BEST = 5
SEEN = 0.5


@dataclass(frozen=True)
class Subject:
    """An artifact ready to look at pictures."""

    name: str
    run: Adapter
    preprocess: ImagePreprocessor
    task: str
    labels: tuple[str, ...]
    options: DetectionOptions


@dataclass(frozen=True)
class Frame:
    """A picture, `[height, width, 3]` RGB, and its name."""

    name: str
    pixels: np.ndarray


def predict(
    *,
    artifacts: list[dict[str, str]],
    images: str,
    card: str | None,
    confidence: float | None,
    frames: int,
    folder: str,
) -> dict[str, Any]:
    """Write one picture per image, or one video, to `folder`; returns what was found.

    Args:
        artifacts: `path` and `runtime` of each.
        images: an image, a folder of images, or a video.
        card: of the model; the bundle around an artifact where None.
        confidence: lowest score of a box.
        frames: how many of a video are taken.
        folder: to write to.
    """
    subjects = [_subject(a["path"], a["runtime"], card, confidence) for a in artifacts]
    path, out = Path(images), Path(folder)
    video = path.suffix.lower() in VIDEOS
    found: list[dict[str, Any]] = []
    writer: cv2.VideoWriter | None = None
    for index, frame in enumerate(_video(path, frames) if video else _images(path)):
        report(f"{frame.name} ({index + 1})")
        results = [_look(subject, frame) for subject in subjects]
        picture = beside([r[1] for r in results], [s.name for s in subjects] if len(subjects) > 1 else [])
        found.append({"image": frame.name, "results": [r[0] for r in results]})
        if not video:
            name = frame.name.replace("/", "_")
            _save(out / f"{Path(name).with_suffix('')}.jpg", picture)
            continue
        if writer is None:
            writer = cv2.VideoWriter(
                str(out / f"{path.stem}.mp4"),
                cv2.VideoWriter.fourcc(*"mp4v"),
                _frame_rate(path),
                (picture.shape[1], picture.shape[0]),
            )
            if not writer.isOpened():
                raise DataError(f"{path}: OpenCV cannot write a video here")
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
    return {"artifacts": [a["path"] for a in artifacts], "images": images, "predictions": found}


def _subject(artifact: str, runtime: str, card: str | None, confidence: float | None) -> Subject:
    path = Path(artifact)
    session = plugins.find("runtimes", runtime).load(path, {})
    record = _recorded(path)
    if card is not None:
        told = read_card(Path(card))
        base = Path(card).parent
        task, preprocess, options = told.task, told.preprocess, told.detection
        labels = read_labels(told, base) or ()
    elif record is not None:
        task, labels = record["task"], tuple(record["labels"] or ())
        own = {k: v for k, v in record["preprocess"].items() if k in Preprocess.model_fields}
        preprocess = parse(Preprocess, own, f"{path.parent / MANIFEST}: preprocess")
        options = parse(DetectionOptions, record.get("detection") or {}, f"{path.parent / MANIFEST}: detection")
    else:
        raise UsageError(f"{path}: no bundle around it tells its task and preprocessing: give --card CARD.yaml")
    if confidence is not None:
        options = options.model_copy(update={"confidence": confidence})
    inputs, outputs = session.inputs, session.outputs
    if record is not None:
        inputs = tuple(TensorSpec.from_json(s) for s in record["inputs"])
        if not (recorded(path) or {}).get("nms"):  # else its outputs are its own
            outputs = tuple(TensorSpec.from_json(s) for s in record["outputs"])
    if task != "image-classification" and task not in TASKS:
        raise UsageError(f"{path}: predict draws image classes and boxes; its task is {task}")
    name = f"{path.name}"
    return Subject(
        name, Adapter(session, inputs, outputs), ImagePreprocessor(preprocess, inputs), task, labels, options
    )


def _recorded(path: Path) -> dict[str, Any] | None:
    """Return what the bundle around an artifact says of its model."""
    try:
        document = json.loads((path.parent / MANIFEST).read_bytes())
        model = document["model"]
        if path.name not in {a["path"] for a in document["artifacts"]} or not {"task", "preprocess"} <= set(model):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found: dict[str, Any] = model
    return found


def _look(subject: Subject, frame: Frame) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the artifact finds, as data and drawn."""
    fed = subject.preprocess.pixels(frame.pixels, frame.name)
    outputs = {n: a[0] for n, a in subject.run({n: a[None] for n, a in fed.items()}).items()}
    picture, factor = enlarged(frame.pixels)
    if subject.task == "image-classification":
        ranking = [(_label(subject, i), share) for i, share in _best(next(iter(outputs.values())).reshape(-1))]
        record = {"artifact": subject.name, "classes": [{"label": n, "score": round(s, 4)} for n, s in ranking]}
        return record, draw_ranking(picture, ranking)
    if not {"boxes", "scores"} <= set(outputs) and "detections" not in outputs:
        raise UsageError(f"{subject.name}: has no outputs boxes and scores, but {', '.join(outputs)}")
    size = (frame.pixels.shape[0], frame.pixels.shape[1])
    found = find(outputs, subject.options)
    place = subject.preprocess.window(size)
    boxes = to_image(found.boxes, place, size)
    if "masks" in outputs:
        goal = (subject.preprocess.spec.shape[2], subject.preprocess.spec.shape[3])
        layers = _masks(outputs, found.anchors, found.boxes, goal)
        draw_masks(picture, layers, found.classes, place, factor)
    names = [f"{_label(subject, int(k))} {s:.2f}" for k, s in zip(found.classes, found.scores, strict=True)]
    draw_boxes(picture, boxes * factor, names, found.classes)
    if "keypoints" in outputs:
        points = outputs["keypoints"][:, found.anchors].T
        width = 3 if points.shape[1] % 3 == 0 else 2
        points = points.reshape(len(points), -1, width).copy()
        points[..., :2] = (points[..., :2] - place.offset) / place.scale * factor
        draw_keypoints(picture, points, SEEN)
    listed = [
        {"label": _label(subject, int(k)), "score": round(float(s), 4), "box": [round(float(v), 1) for v in b]}
        for b, k, s in zip(boxes, found.classes, found.scores, strict=True)
    ]
    return {"artifact": subject.name, "detections": listed}, picture


def _masks(
    outputs: Mapping[str, np.ndarray], anchors: np.ndarray, boxes: np.ndarray, goal: tuple[int, int]
) -> list[np.ndarray]:
    """Return one mask `[height, width]` of the model's input per detection, inside its box."""
    prototypes = outputs["prototypes"]
    layers = []
    for anchor, box in zip(anchors, boxes, strict=True):
        mask = np.tensordot(outputs["masks"][:, anchor], prototypes, 1)
        mask = cv2.resize(mask, (goal[1], goal[0]), interpolation=cv2.INTER_LINEAR) > 0
        left, top, right, bottom = np.clip(np.rint(box), 0, max(goal)).astype(int)
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = mask[top:bottom, left:right]
        layers.append(inside)
    return layers


def _best(scores: np.ndarray) -> list[tuple[int, float]]:
    """Return the best classes with their shares; logits go through softmax, probabilities are taken as they are."""
    values = scores.astype(np.float64)
    if values.min() < 0 or not np.isclose(values.sum(), 1, atol=0.02):
        values = np.exp(values - values.max())
        values /= values.sum()
    order = np.argsort(-values, kind="stable")[:BEST]
    return [(int(i), float(values[i])) for i in order]


def _label(subject: Subject, index: int) -> str:
    return subject.labels[index] if index < len(subject.labels) else f"class {index}"


def _images(path: Path) -> Iterator[Frame]:
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"{path}: no images in it")
    else:
        files = [path]
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        yield Frame(name, decode_image(read_file(file, str(path)), str(file)))


def _video(path: Path, most: int) -> Iterator[Frame]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        for index in range(most):
            read, pixels = capture.read()
            if not read:
                if index == 0:
                    raise DataError(f"{path}: no video that OpenCV reads, or a damaged one")
                return
            yield Frame(f"frame {index}", cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()


def _frame_rate(path: Path) -> float:
    capture = cv2.VideoCapture(str(path))
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    return rate if 1 <= rate <= 240 else 25.0


def _save(path: Path, picture: np.ndarray) -> None:
    done, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not done:
        raise DataError(f"{path.name}: OpenCV cannot encode the picture")
    path.write_bytes(content.tobytes())
