"""Encoded images to pixels, refusing damaged and oversized files."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from edgeopt.core.errors import DataError
from edgeopt.data.source import Array

MAX_PIXELS = 2**27
MAX_FILE_BYTES = 2**28
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

# OpenCV reads these once, when its library loads. Decoders' own words would reach the terminal, and its default of
# 2^30 pixels lets a few kilobytes of PNG ask for 3 GB.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

import cv2  # noqa: E402 - after its settings

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # no stuffed zero, no restart marker


def read_file(path: Path, where: str) -> bytes:
    """Return a file's content.

    Raises:
        DataError: missing, not a regular file, unreadable, or larger than 256 MiB.
    """
    try:
        if not path.is_file():
            raise DataError(f"{where}: {path} is {'not a file' if path.exists() else 'missing'}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{where}: {path} is larger than {MAX_FILE_BYTES >> 20} MiB; is it an image?")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from error


def decode_image(data: bytes, where: str) -> Array:
    """Return an image's pixels, turned upright as its EXIF orientation asks.

    Args:
        data: a whole JPEG, PNG, BMP, WebP, TIFF, PPM or PGM file.
        where: names it in errors.

    Returns:
        `[height, width, 3]` uint8, RGB; transparency is dropped, 16-bit images lose their low byte.

    Raises:
        DataError: no image, cut short, damaged, or of more than 2^27 pixels.
    """
    if not data:
        raise DataError(f"{where}: the image file is empty")
    if data.startswith(_JPEG) and not _jpeg_is_whole(data):
        raise DataError(f"{where}: the JPEG is cut short or damaged; fetch it again")
    if data.startswith(_PNG) and not _png_is_whole(data):
        raise DataError(f"{where}: the PNG is cut short or damaged; fetch it again")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = "more pixels than 2^27" if "CV_IO_MAX_IMAGE" in str(error) else f"OpenCV: {error.err}"
        raise DataError(f"{where}: the image cannot be decoded: {reason}") from error
    if pixels is None:
        kinds = ", ".join(sorted(s[1:] for s in SUFFIXES))
        raise DataError(f"{where}: no readable image, or one that is damaged or cut short; expected {kinds}")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _jpeg_is_whole(data: bytes) -> bool:
    """Walk the segments (ITU-T T.81, annex B) to the end-of-image marker.

    OpenCV 4 decodes a JPEG without its end and leaves the rest grey. A thumbnail inside a segment has an end marker
    of its own, so searching for the marker alone is not enough.
    """
    position = 2
    while True:
        if (marker := _JPEG_MARKER.search(data, position)) is None:
            return False
        position = marker.end()
        code = marker[1][0]
        if code == 0xD9:
            return True
        if code == 0x01 or code == 0xD8:
            continue
        if position + 2 > len(data):
            return False
        position += struct.unpack_from(">H", data, position)[0]


def _png_is_whole(data: bytes) -> bool:
    """Check every chunk's CRC up to IEND."""
    position = len(_PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end + 4
    return False
