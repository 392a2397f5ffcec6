from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeopt.core.card import Preprocess
from edgeopt.core.errors import DataError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data.preprocess import ImagePreprocessor, centre_crop, resize

SIZES = st.integers(1, 40)


@st.composite
def images(draw) -> np.ndarray:
    shape = (draw(SIZES), draw(SIZES), *draw(st.sampled_from([(), (1,), (3,)])))
    return draw(arrays(np.uint8, shape, elements=st.integers(0, 255), fill=st.integers(0, 255)))


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolation at pixel centres, edges repeated, written out in float64."""

    def weights(old: int, new: int) -> np.ndarray:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (at - low)
        matrix[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
        return matrix

    return np.einsum("yh,hwc,xw->yxc", weights(image.shape[0], height), image, weights(image.shape[1], width))


def apply(
    options: dict, image: np.ndarray, shape: tuple[int, ...], dtype: str = "float32", layout: str = ""
) -> np.ndarray:
    preprocessor = ImagePreprocessor(Preprocess(**options), (TensorSpec("image", shape, dtype, layout),))
    return preprocessor.pixels(image, "x")["image"]


@settings(max_examples=60, deadline=None)
@given(
    image=images(),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "area", "lanczos"]),
    dtype=st.sampled_from(["float32", "float16", "uint8", "int32"]),
    goal=st.tuples(SIZES, SIZES),
)
def test_every_image_gets_the_inputs_shape_and_dtype(image, color, layout, interpolation, dtype, goal):
    channels = 1 if color == "gray" else 3
    shape = (channels, *goal) if layout == "NCHW" else (*goal, channels)
    options = {"resize": goal, "color": color, "layout": layout, "interpolation": interpolation}
    result = apply(options, image, (1, *shape), dtype)
    assert result.shape == shape and result.dtype == dtype and result.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(image=images(), short=SIZES)
def test_resize_by_a_number_sets_the_short_side_and_keeps_proportions(image, short):
    height, width = resize(image, short, "bilinear", "x").shape[:2]
    assert min(height, width) == short
    assert max(height, width) == short * max(image.shape[:2]) // min(image.shape[:2])
    assert (height < width) == (image.shape[0] < image.shape[1] and height != width)


@settings(max_examples=60, deadline=None)
@given(image=images(), goal=st.tuples(SIZES, SIZES))
def test_bilinear_resize_is_interpolation_at_pixel_centres(image, goal):
    image = image.reshape(*image.shape[:2], -1)
    resized = resize(image, goal, "bilinear", "x").reshape(*goal, -1)
    assert np.abs(resized - bilinear(image, *goal)).max() <= 1.01


@settings(max_examples=40, deadline=None)
@given(image=images(), factor=st.integers(1, 5))
def test_area_resize_by_a_whole_factor_averages_blocks(image, factor):
    image = image.reshape(*image.shape[:2], -1)
    large = np.kron(image, np.ones((factor, factor, 1), np.uint8))
    assert np.array_equal(resize(large, image.shape[:2], "area", "x").reshape(image.shape), image)


@given(image=images(), height=SIZES, width=SIZES)
def test_a_crop_takes_the_middle_or_says_that_it_cannot(image, height, width):
    if height > image.shape[0] or width > image.shape[1]:
        with pytest.raises(DataError, match=r"^x: .*smaller than the crop"):
            centre_crop(image, (height, width), "x")
        return
    middle = centre_crop(image, (height, width), "x")
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    assert np.array_equal(middle, image[top:, left:][:height, :width])
    below, right = image.shape[0] - height - top, image.shape[1] - width - left
    assert 0 <= below - top <= 1 and 0 <= right - left <= 1


@given(
    image=arrays(np.uint8, (5, 4, 3)),
    scale=st.sampled_from([1.0, 1 / 255, 2.0]),
    mean=st.sampled_from([(0.0,), (127.0,), (0.485, 0.456, 0.406)]),
    std=st.sampled_from([(1.0,), (128.0,), (0.229, 0.224, 0.225)]),
)
def test_pixels_are_scaled_centred_and_divided_per_channel(image, scale, mean, std):
    result = apply({"scale": scale, "mean": mean, "std": std}, image, (1, 3, 5, 4))
    expected = (image.astype(np.float64) * scale - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-4)


def test_bgr_reverses_the_channels_and_nhwc_keeps_them_last(picture):
    assert np.array_equal(apply({"color": "bgr"}, picture, (1, 3, 16, 12)), picture.transpose(2, 0, 1)[::-1])
    assert np.array_equal(apply({"layout": "NHWC"}, picture, (1, 16, 12, 3)), picture)


def test_the_inputs_own_layout_wins_over_the_cards(picture):
    assert apply({}, picture, (1, 16, 12, 3), layout="NHWC").shape == (16, 12, 3)


@given(image=arrays(np.uint8, (6, 5)))
def test_grey_pixels_survive_colour_and_back(image):
    assert np.array_equal(apply({"color": "gray"}, np.repeat(image[..., None], 3, axis=2), (1, 1, 6, 5))[0], image)
    assert np.array_equal(apply({"color": "gray"}, image, (1, 6, 5)), image)
    assert np.array_equal(apply({"color": "gray"}, image, (1, 30)), image.ravel())


def test_integer_inputs_are_rounded_and_clipped(picture):
    result = apply({"mean": (128.0,), "std": (0.5,)}, picture, (1, 3, 16, 12), "int8")
    expected = np.clip((picture.astype(int) - 128) * 2, -128, 127).transpose(2, 0, 1)
    assert np.array_equal(result, expected)


def test_a_wrong_size_names_both_shapes(picture):
    with pytest.raises(DataError, match=r"x: the image gives \[3, 16, 12\].*'image' takes \[3, 8, 8\].*resize"):
        apply({}, picture, (1, 3, 8, 8))
    with pytest.raises(DataError, match=r"\[3, 16, 12\].*takes \[1, 16, 12\].*color"):
        apply({}, picture, (1, 1, 16, 12))


def test_extreme_proportions_do_not_fill_the_memory():
    with pytest.raises(DataError, match=r"2\^27 pixels"):
        apply({"resize": 256, "crop": 224}, np.zeros((1, 10000, 3), np.uint8), (1, 3, 224, 224))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 200, "crop": 224}, r"crop \[224, 224\] is larger than preprocess.resize \[200, 200\]"),
        ({"resize": [300, 200], "crop": [224, 224]}, "larger than"),
        ({"color": "gray", "mean": [1, 2, 3]}, "mean has 3 values, but color is gray"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_image(options, message, rgb):
    with pytest.raises(UsageError, match=message):
        ImagePreprocessor(Preprocess(**options), rgb)


def test_images_need_a_model_of_one_input(rgb):
    with pytest.raises(UsageError, match=r"has 2 \(image, mask\): use a .npz file"):
        ImagePreprocessor(Preprocess(), (*rgb, TensorSpec("mask", (1, 8, 8))))
