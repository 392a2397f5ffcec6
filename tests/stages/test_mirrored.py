"""Mirrored samples, `edgeopt.stages.mirrored`."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core.model import TensorSpec
from edgeopt.stages.mirrored import with_mirrored

NCHW, NHWC = np.arange(24.0).reshape(1, 3, 2, 4), np.arange(24.0).reshape(1, 2, 4, 3)
OTHER = np.arange(5.0)


def batches():
    return iter([{"image": NCHW, "other": OTHER}, {"image": NCHW + 1, "other": OTHER}])


SPECS = (TensorSpec("image", (1, 3, 2, 4), "float32", "NCHW"), TensorSpec("other", (5,)))


def test_every_image_comes_again_left_for_right():
    found = list(with_mirrored(batches, SPECS, "image-classification")())
    assert len(found) == 4
    for plain, mirrored in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(mirrored["image"], plain["image"][..., ::-1])
        np.testing.assert_array_equal(mirrored["other"], OTHER)


def test_the_layout_tells_the_axis():
    specs = (TensorSpec("image", (1, 2, 4, 3), "float32", "NHWC"),)
    found = list(with_mirrored(lambda: iter([{"image": NHWC}]), specs, "object-detection")())
    np.testing.assert_array_equal(found[1]["image"], NHWC[:, :, ::-1])


@pytest.mark.parametrize(
    ("spec", "task"),
    [
        (TensorSpec("image", (1, 3, 2, 4), "float32", "NCHW"), "text-classification"),
        (TensorSpec("image", (1, 1, 2, 4), "float32", "NCHW"), "image-classification"),
        (TensorSpec("image", (1, 3, 8), "float32", ""), "image-classification"),
    ],
)
def test_what_is_no_colour_image_stays_as_it_is(spec, task):
    assert with_mirrored(batches, (spec,), task) is batches
