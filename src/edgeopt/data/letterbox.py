"""An image scaled to fit into a model's input, the rest filled with grey, and the way back for boxes."""

from __future__ import annotations

import cv2
import numpy as np

from edgeopt.core.detection import Window
from edgeopt.data.source import Array

GREY = 114
"""What ultralytics' networks were trained with around the image."""


def window(size: tuple[int, int], goal: tuple[int, int]) -> Window:
    """Return where an image of `size` (height, width) lies in a letterbox of `goal`: centred, as large as fits.

    Before: 480 × 640 into 320 × 320. After: scale 0.5, 40 rows of grey above and below.
    """
    ratio = min(goal[0] / size[0], goal[1] / size[1])
    height, width = (max(1, round(s * ratio)) for s in size)
    return Window((width / size[1], height / size[0]), ((goal[1] - width) // 2, (goal[0] - height) // 2))


def letterbox(image: Array, goal: tuple[int, int], interpolation: int = cv2.INTER_LINEAR) -> Array:
    """Return `[goal height, goal width, channels]` with the image in its window."""
    place = window((image.shape[0], image.shape[1]), goal)
    height, width = round(place.scale[1] * image.shape[0]), round(place.scale[0] * image.shape[1])
    left, top = (int(o) for o in place.offset)
    canvas = np.full((*goal, *image.shape[2:]), GREY, image.dtype)
    scaled = cv2.resize(image, (width, height), interpolation=interpolation) if image.size else image
    canvas[top : top + height, left : left + width] = scaled.reshape(height, width, *image.shape[2:])
    return canvas


def to_input(boxes: Array, place: Window) -> Array:
    """Return boxes `[n, 4]` (left, top, right, bottom) of the image in pixels of the input."""
    return np.asarray(boxes * (place.scale * 2) + (place.offset * 2), np.float32)


def to_image(boxes: Array, place: Window, size: tuple[int, int]) -> Array:
    """Return boxes `[n, 4]` of the input in pixels of the image of `size` (height, width), cut at its edges."""
    own = (boxes - np.asarray(place.offset * 2)) / np.asarray(place.scale * 2)
    cut: Array = np.clip(own, 0, (size[1], size[0]) * 2).astype(np.float32)
    return cut
