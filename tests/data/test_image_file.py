from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import DataError
from edgeopt.data.image_file import decode_image, read_file

LOSSLESS = (".png", ".bmp", ".tiff", ".ppm")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in chunks)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_files_give_their_pixels_as_rgb(picture, encode, suffix):
    assert np.array_equal(decode_image(encode(picture, suffix), "x"), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_give_nearly_their_pixels(encode, suffix):
    smooth = np.linspace((0, 255, 90), (255, 0, 90), 32 * 32).reshape(32, 32, 3).astype(np.uint8)
    assert np.abs(decode_image(encode(smooth, suffix), "x").astype(int) - smooth).mean() < 12


def test_grey_files_give_three_equal_channels(picture, encode):
    decoded = decode_image(encode(picture[..., 0]), "x")
    assert np.array_equal(decoded, np.repeat(picture[..., :1], 3, axis=2))


def test_exif_orientation_turns_the_image_upright(encode):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    jpeg = encode(pixels, ".jpg")
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # orientation: turn clockwise
    exif = b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, 1) + tag + bytes(4)
    turned = decode_image(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:], "x")
    assert turned.shape == (32, 16, 3)
    assert turned[:14].mean() < 20 and turned[18:].mean() > 235


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.995])
def test_a_file_cut_short_is_refused_by_name(encode, suffix, share):
    content = encode(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), suffix)
    with pytest.raises(DataError, match=r"^photo: .*(cut short|no readable image)"):
        decode_image(content[: int(len(content) * share)], "photo")


def test_a_cut_jpeg_is_found_although_its_thumbnail_is_whole(encode, picture):
    thumbnail = encode(picture, ".jpg")
    jpeg = encode(np.tile(picture, (8, 8, 1)), ".jpg")
    with_thumbnail = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    assert decode_image(with_thumbnail, "x").shape == (128, 96, 3)
    with pytest.raises(DataError, match="cut short"):
        decode_image(with_thumbnail[:-200], "x")


def test_bytes_after_the_end_are_no_damage(encode, picture):
    for suffix in (".jpg", ".png"):
        assert decode_image(encode(picture, suffix) + b"trailing", "x").shape == picture.shape


def test_a_damaged_png_is_refused(encode, picture):
    content = bytearray(encode(picture))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        decode_image(bytes(content), "x")


@pytest.mark.parametrize("size", [(60000, 60000), (1, 2**30)])
def test_an_image_that_would_fill_the_memory_is_refused(size):
    with pytest.raises(DataError, match=r"cannot be decoded|no readable image"):
        decode_image(png_of_size(*size), "x")


@pytest.mark.parametrize(
    "content", [b"", b"path,label\n", b"PK\x03\x04", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(99)]
)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(DataError, match=r"^x: "):
        decode_image(content, "x")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_give_pixels_or_a_data_error(encode, picture, data):
    suffix = data.draw(st.sampled_from([".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"]))
    content = bytearray(encode(picture, suffix))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(content[: data.draw(st.integers(1, len(content)))]), "x")
    except DataError as error:
        assert str(error).startswith("x: ") and "\n" not in str(error)
    else:
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(DataError, match=r"^row 3: .*missing"):
        read_file(tmp_path / "none.jpg", "row 3")
    with pytest.raises(DataError, match="not a file"):
        read_file(tmp_path, "row 3")
