from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import DataError, EdgeoptError
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data

FEATURES = (TensorSpec("features", (1, 4)),)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


@pytest.fixture
def opened(tmp_path, card):
    def opening(inputs: tuple[TensorSpec, ...] = FEATURES, options: dict | None = None, **arrays: np.ndarray):
        save(tmp_path / "data.npz", **arrays)
        return open_data("data.npz", card(**(options or {})), inputs, tmp_path)

    return opening


def test_x_and_y_feed_a_model_of_one_input(opened):
    x = np.arange(12.0).reshape(3, 4)
    source = opened(x=x, y=np.array([0, 2, 1]))
    assert len(source) == 3 and source.kind == "npz"
    sample = source[1]
    assert (sample.id, sample.label) == ("1", 2)
    assert sample.inputs["features"].dtype == np.float32
    assert np.array_equal(sample.inputs["features"], x[1])


def test_arrays_named_like_the_inputs_feed_each(opened):
    inputs = (TensorSpec("input_ids", (1, 5), "int32"), TensorSpec("attention_mask", (1, 5), "int64"))
    ids = np.arange(10).reshape(2, 5)
    source = opened(inputs, input_ids=ids, attention_mask=np.ones((2, 5), np.int8), label=np.array([[1], [0]]))
    sample = source[1]
    assert {n: (a.dtype.name, a.shape) for n, a in sample.inputs.items()} == {
        "input_ids": ("int32", (5,)),
        "attention_mask": ("int64", (5,)),
    }
    assert sample.label == 0


def test_an_input_called_x_and_no_labels(opened):
    assert opened((TensorSpec("x", (1, 4)),), x=np.zeros((2, 4), np.float32))[0].label is None


def test_label_names_are_understood(opened):
    source = opened(options={"labels": ["cat", "dog"]}, x=np.zeros((2, 4)), y=np.array(["dog", "cat"]))
    assert [source[i].label for i in range(2)] == [1, 0]


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8)])
def test_uint8_images_are_preprocessed_whatever_their_layout(opened, rgb, shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    result = opened(rgb, {"preprocess": {"mean": [127], "std": [128]}}, x=images)[1].inputs["image"]
    upright = images[1] if shape[0] == 3 else images[1].transpose(2, 0, 1)
    np.testing.assert_allclose(result, (upright.astype(np.float32) - 127) / 128)


def test_grey_uint8_images_are_preprocessed_even_in_the_inputs_shape(opened):
    images = np.full((2, 8, 8), 255, np.uint8)
    options = {"preprocess": {"color": "gray", "scale": 1 / 255}}
    for shape in ((1, 1, 8, 8), (1, 8, 8), (1, 64)):
        result = opened((TensorSpec("image", shape),), options, x=images)[0].inputs["image"]
        assert result.shape == shape[1:] and np.allclose(result, 1)


def test_uint8_inputs_take_their_pixels_as_they_are(opened):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    source = opened((TensorSpec("image", (1, 8, 8, 3), "uint8"),), {"preprocess": {"mean": [9]}}, x=images)
    assert np.array_equal(source[0].inputs["image"], images[0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((2, 4))}, "no array called features or x; it holds data"),
        ({}, "no array called features or x; it holds no arrays"),
        ({"x": np.zeros((2, 5))}, r"x: samples of shape \[5\].*takes \[4\]"),
        ({"x": np.zeros(4)}, r"samples of shape \[\]"),
        ({"x": np.float32(1)}, "x: a single value"),
        ({"x": np.zeros((0, 4))}, "x has no samples"),
        ({"x": np.zeros((2, 4), complex)}, "dtype complex128 where the model takes float32"),
        ({"x": np.array([["a", "b", "c", "d"]])}, "dtype <U1 where"),
        ({"x": np.array([[{}, 1, 2, 3]], object)}, "x: an array of Python objects"),
        ({"x": np.zeros((2, 4)), "y": np.array([None, 1])}, "y: an array of Python objects"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(3, int)}, "y has 3 samples where x has 2"),
        ({"x": np.zeros((2, 4)), "y": np.zeros((2, 2), int)}, r"y: labels of shape \[2, 2\]"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(2)}, "y: labels of dtype float64; expected integers"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, 3])}, r"y\[1\]: label 3 is out of range; expected 0 to 2"),
        ({"x": np.zeros((2, 4)), "y": np.array([-1, 0])}, r"y\[0\]: label -1 is out of range"),
        ({"x": np.zeros((2, 4)), "y": np.array(["a", "z"])}, r"y\[1\]: label 'z' is neither"),
    ],
)
def test_what_is_wrong_with_an_npz_is_named(opened, arrays, message):
    with pytest.raises(DataError, match=rf"data\.npz: .*{message}"):
        opened(options={"labels": ["a", "b", "c"]}, **arrays)


def test_values_that_do_not_fit_are_named_when_read(opened):
    with pytest.raises(DataError, match=r"x\[1\]: holds NaN"):
        opened(x=np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]))[1]
    with pytest.raises(DataError, match=r"x\[0\]: values outside the range of int8"):
        opened((TensorSpec("ids", (1, 1), "int8"),), x=np.array([[300]]))[0]
    with pytest.raises(IndexError):
        opened(x=np.zeros((2, 4)))[2]


def test_one_of_several_inputs_missing_is_named(opened):
    inputs = (TensorSpec("a", (1, 4)), TensorSpec("b", (1, 4)))
    with pytest.raises(DataError, match="no array called b; it holds a, c"):
        opened(inputs, a=np.zeros((1, 4)), c=np.zeros((1, 4)))


def test_a_header_may_not_claim_more_than_the_file_holds(tmp_path, card):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)})
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    with pytest.raises(DataError, match=r"x: shape .* claims more data than the file holds"):
        open_data("data.npz", card(), FEATURES, tmp_path)


def test_a_bare_npy_or_any_other_file_is_refused(tmp_path, card):
    np.save(tmp_path / "data.npy", np.zeros((2, 4)))
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        open_data("data.npz", card(), FEATURES, tmp_path)


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing:UserWarning")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_samples_or_one_error_line(tmp_path, card, data):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(8.0).reshape(2, 4))
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", bytes(content[: data.draw(st.integers(0, len(content)))]))
    whole = bytearray((tmp_path / "data.npz").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=2)):
        whole[place] = data.draw(st.integers(0, 255))
    (tmp_path / "data.npz").write_bytes(whole)
    try:
        source = open_data("data.npz", card(), FEATURES, tmp_path)
        assert source[0].inputs["features"].shape == (4,)
    except EdgeoptError as error:
        assert isinstance(error, DataError) and "\n" not in str(error)


def test_the_fingerprint_follows_content_and_preprocessing(opened):
    first = opened(x=np.zeros((2, 4))).fingerprint()
    assert opened(x=np.ones((2, 4))).fingerprint() != first
    assert opened(options={"preprocess": {"scale": 2}}, x=np.zeros((2, 4))).fingerprint() != first
