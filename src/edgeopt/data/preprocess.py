"""Pixels to the model's input, as the model card declares it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from edgeopt.core.card import Interpolation, Preprocess
from edgeopt.core.detection import Window
from edgeopt.core.errors import DataError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data.image_file import MAX_PIXELS, decode_image
from edgeopt.data.letterbox import letterbox, window
from edgeopt.data.source import Array

INTERPOLATIONS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


class ImagePreprocessor:
    """Turns one image into the one input of an image model.

    In order: letterbox, or resize and centre crop; colour, `(pixel * scale - mean) / std` in float32, layout,
    dtype (integers are rounded and clipped to their range).

    Before: `[480, 640, 3]` uint8 RGB. After, with `resize: 256, crop: 224`: `[3, 224, 224]` float32.
    """

    def __init__(self, settings: Preprocess, inputs: tuple[TensorSpec, ...]) -> None:
        """Check the settings against the input.

        Raises:
            UsageError: the model has not exactly one input, or crop, mean or std do not fit it.
        """
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise UsageError(f"images feed a model of one input; this one has {len(inputs)} ({names}): use a .npz file")
        for option in ("mean", "std"):
            if settings.color == "gray" and len(getattr(settings, option)) != 1:
                raise UsageError(f"model card: preprocess.{option} has 3 values, but color is gray: give 1")
        if settings.crop is not None and settings.resize is not None:
            _check_crop(settings)
        self.settings = settings
        self.spec = inputs[0]
        self.layout = self.spec.layout or settings.layout
        self._mean = np.asarray(settings.mean, np.float32)
        self._std = np.asarray(settings.std, np.float32)

    def encoded(self, data: bytes, where: str) -> dict[str, Array]:
        """Return the input made of an image file's content.

        Raises:
            DataError: not an image, damaged, or of a size that does not give the input's shape.
        """
        return self.pixels(decode_image(data, where), where)

    def pixels(self, image: Array, where: str) -> dict[str, Array]:
        """Return the input made of `[height, width]` or `[height, width, 1 or 3]` uint8 pixels (RGB).

        Raises:
            DataError: of a size that does not give the input's shape.
        """
        if self.settings.letterbox is not None:
            image = letterbox(image, _sides(self.settings.letterbox), INTERPOLATIONS[self.settings.interpolation])
        image = resize(image, self.settings.resize, self.settings.interpolation, where)
        if self.settings.crop is not None:
            image = centre_crop(image, self.settings.crop, where)
        image = recolour(image, self.settings.color)
        values = (image.astype(np.float32) * np.float32(self.settings.scale) - self._mean) / self._std
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return {self.spec.name: self._fit(values, where)}

    def window(self, size: tuple[int, int]) -> Window:
        """Return where an image of `size` (height, width) lies in the input."""
        if self.settings.letterbox is not None:
            return window(size, _sides(self.settings.letterbox))
        goal = _goal(size, self.settings.resize)
        crop = goal if self.settings.crop is None else _sides(self.settings.crop)
        left, top = (goal[1] - crop[1]) // 2, (goal[0] - crop[0]) // 2
        return Window((goal[1] / size[1], goal[0] / size[0]), (-float(left), -float(top)))

    def _fit(self, values: Array, where: str) -> Array:
        wanted = self.spec.shape[1:]
        flat = len(wanted) == 1 or (len(wanted) == 2 and 1 in (values.shape[0], values.shape[2]))
        if flat and -1 not in wanted and math.prod(wanted) == values.size:
            values = values.reshape(wanted)
        if not matches(values.shape, wanted):
            raise DataError(
                f"{where}: the image gives {list(values.shape)} ({self.layout} without batch), but input "
                f"{self.spec.name!r} takes {list(wanted)}: see preprocess.resize, crop, color and layout in the card"
            )
        dtype = np.dtype(self.spec.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return np.ascontiguousarray(values, dtype)


def matches(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether `shape` is `wanted`, where -1 stands for any size."""
    return len(shape) == len(wanted) and all(w in (-1, s) for s, w in zip(shape, wanted, strict=True))


def resize(image: Array, size: int | tuple[int, int] | None, interpolation: Interpolation, where: str) -> Array:
    """Return `image` with its short side of `size` pixels (the long one rounded down), or exactly `(height, width)`.

    Raises:
        DataError: the result would have more than 2^27 pixels: an image of extreme proportions.
    """
    height, width = image.shape[:2]
    goal = _goal((height, width), size)
    if goal == (height, width):
        return image
    if goal[0] * goal[1] > MAX_PIXELS:
        raise DataError(f"{where}: resizing {height}x{width} pixels to {goal[0]}x{goal[1]} exceeds 2^27 pixels")
    scaled = cv2.resize(image, (goal[1], goal[0]), interpolation=INTERPOLATIONS[interpolation])
    return scaled.reshape(*goal, *image.shape[2:])  # OpenCV drops a single channel


def _goal(size: tuple[int, int], wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    if wanted is None:
        return size
    if isinstance(wanted, int):
        short = min(size)
        return int(wanted * size[0] / short), int(wanted * size[1] / short)
    return wanted


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def centre_crop(image: Array, size: int | tuple[int, int], where: str) -> Array:
    """Return the middle `size` × `size`, or `(height, width)`, pixels; an odd margin leaves one more below and right.

    Raises:
        DataError: the image is smaller.
    """
    height, width = _sides(size)
    if image.shape[0] < height or image.shape[1] < width:
        raise DataError(
            f"{where}: the image of {image.shape[0]}x{image.shape[1]} pixels is smaller than the crop of "
            f"{height}x{width}: set preprocess.resize in the card"
        )
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def recolour(image: Array, color: str) -> Array:
    """Return RGB or grey pixels as `[height, width, channels]` in the order asked for: `rgb`, `bgr` or `gray`."""
    if image.ndim == 2:
        image = image[..., None]
    if color == "gray":
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if image.shape[2] == 3 else image
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return image[..., ::-1] if color == "bgr" else image


def _check_crop(settings: Preprocess) -> None:
    assert settings.crop is not None and settings.resize is not None
    crop = (settings.crop,) * 2 if isinstance(settings.crop, int) else settings.crop
    size = (settings.resize,) * 2 if isinstance(settings.resize, int) else settings.resize
    # A number for `resize` bounds the short side only, so a wide crop may still fit some images.
    too_large = min(crop) > min(size) if isinstance(settings.resize, int) else crop[0] > size[0] or crop[1] > size[1]
    if too_large:
        raise UsageError(f"model card: preprocess.crop {list(crop)} is larger than preprocess.resize {list(size)}")
