"""Boxes, masks, points and class names drawn onto pictures; all pictures are `[height, width, 3]` uint8 RGB."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from edgeopt.core.detection import Window

FONT = cv2.FONT_HERSHEY_SIMPLEX
SHORTEST = 480
"""Pictures whose long side is shorter are enlarged, so that writing can be read."""
BAR = 26
GAP = 8


def enlarged(image: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a copy to draw on, enlarged by a whole number where it is small, and that number."""
    factor = max(1, -(-SHORTEST // max(image.shape[:2])))
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, 2)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST) if factor > 1 else image.copy(), factor


def colour(index: int) -> tuple[int, int, int]:
    """Return a colour per class, far from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(picture: np.ndarray, boxes: np.ndarray, names: Sequence[str], classes: np.ndarray) -> None:
    """Draw boxes `[n, 4]` in pixels of the picture, each with its name; the best lies on top."""
    for box, name, kind in reversed(list(zip(boxes, names, classes, strict=True))):
        left, top, right, bottom = (round(float(v)) for v in box)
        cv2.rectangle(picture, (left, top), (right, bottom), colour(int(kind)), 2)
        _label(picture, name, left, top, colour(int(kind)))


def draw_masks(
    picture: np.ndarray, masks: Sequence[np.ndarray], classes: np.ndarray, place: Window, factor: int
) -> None:
    """Tint masks `[height, width]` of the model's input, in which the picture lies at `place`."""
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    left, top = (round(o) for o in place.offset)
    for mask, kind in zip(masks, classes, strict=True):
        part = mask[
            max(0, top) : round(top + height * place.scale[1]), max(0, left) : round(left + width * place.scale[0])
        ]
        if not part.size:
            continue
        shown = cv2.resize(part.astype(np.uint8), (picture.shape[1], picture.shape[0])) > 0
        picture[shown] = picture[shown] * 0.5 + np.array(colour(int(kind))) * 0.5


def draw_keypoints(picture: np.ndarray, points: np.ndarray, seen: float) -> None:
    """Draw points `[n, k, 2 or 3]`; a third number is how visible one is."""
    for person in points:
        for index, point in enumerate(person):
            if len(point) == 2 or point[2] >= seen:
                cv2.circle(picture, (round(float(point[0])), round(float(point[1]))), 4, colour(index), -1, cv2.LINE_AA)


def draw_ranking(picture: np.ndarray, ranking: Sequence[tuple[str, float]]) -> np.ndarray:
    """Return the picture with the best classes under it, a bar for each."""
    panel = np.full((BAR * len(ranking) + GAP, picture.shape[1], 3), 255, np.uint8)
    for row, (name, share) in enumerate(ranking):
        top = GAP // 2 + row * BAR
        cv2.rectangle(panel, (0, top + 2), (round(picture.shape[1] * share), top + BAR - 3), (188, 214, 245), -1)
        room = max(4, (picture.shape[1] - 90) // 9)
        _write(panel, _fitting(name, room), (6, top + BAR - 9))
        _write(panel, f"{100 * share:.1f} %", (max(6, picture.shape[1] - 78), top + BAR - 9))
    return np.concatenate([picture, panel])


def beside(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Return pictures side by side, each under its caption where there are any."""
    framed = []
    for index, picture in enumerate(pictures):
        if captions:
            head = np.full((BAR + GAP, picture.shape[1], 3), 255, np.uint8)
            _write(head, _fitting(captions[index], max(8, picture.shape[1] // 9)), (6, BAR - 4))
            picture = np.concatenate([head, picture])
        framed.append(picture)
    height = max(p.shape[0] for p in framed)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP), (0, 0)), constant_values=255) for p in framed]
    return np.concatenate(padded, 1)[:, :-GAP]


def _label(picture: np.ndarray, text: str, left: int, top: int, fill: tuple[int, int, int]) -> None:
    (width, height), below = cv2.getTextSize(text, FONT, 0.5, 1)
    top = max(top, height + below + 4)
    left = max(0, min(left, picture.shape[1] - width - 6))
    cv2.rectangle(picture, (left, top - height - below - 4), (left + width + 6, top), fill, -1)
    _write(picture, text, (left + 3, top - below - 1))


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's font has no others
    cv2.putText(picture, plain, place, FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _fitting(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."
