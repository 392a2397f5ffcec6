"""An artifact is fed the original's arrays, whatever its own names, memory order and types."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.runtimes.adapter import Adapter


class Echo:
    """A session that gives its inputs back under its outputs' names, and remembers them."""

    def __init__(self, inputs, outputs, results=None):
        self.inputs = inputs
        self.outputs = outputs
        self.results = results

    def __call__(self, inputs):
        self.fed = inputs
        for spec in self.inputs:
            array = inputs[spec.name]
            assert array.dtype.name == spec.dtype and array.flags.c_contiguous
            assert all(own in (-1, given) for own, given in zip(spec.shape, array.shape, strict=True))
        results = self.results or [inputs[s.name] for s in self.inputs]
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}


def spec(name, shape, dtype="float32", layout="", scale=None, zero_point=None):
    return TensorSpec(name, tuple(shape), dtype, layout, scale, zero_point)


def image(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_names_are_matched_in_any_order():
    session = Echo((spec("b", (1, 2)), spec("a", (1, 2))), (spec("y", (1, 2)), spec("x", (1, 2))))
    adapter = Adapter(session, (spec("a", (1, 2)), spec("b", (1, 2))), (spec("x", (1, 2)), spec("y", (1, 2))))
    a, b = image(1, 2), image(1, 2) + 1
    results = adapter({"a": a, "b": b})
    assert np.array_equal(session.fed["a"], a) and np.array_equal(session.fed["b"], b)
    assert np.array_equal(results["x"], a) and np.array_equal(results["y"], b)


def test_other_names_are_matched_by_shape_where_shapes_tell():
    session = Echo((spec("args_0", (1, 3)), spec("args_1", (1, 2))), (spec("o0", (1, 3)), spec("o1", (1, 2))))
    adapter = Adapter(session, (spec("a", (1, 2)), spec("b", (1, 3))), (spec("x", (1, 2)), spec("y", (1, 3))))
    results = adapter({"a": image(1, 2), "b": image(1, 3)})
    assert results["x"].shape == (1, 2) and session.fed["args_0"].shape == (1, 3)


def test_other_names_of_one_shape_are_matched_by_position():
    session = Echo((spec("p", (1, 2)), spec("q", (1, 2))), (spec("r", (1, 2)), spec("s", (1, 2))))
    adapter = Adapter(session, (spec("a", (1, 2)), spec("b", (1, 2))), (spec("x", (1, 2)), spec("y", (1, 2))))
    a = image(1, 2)
    assert np.array_equal(adapter({"a": a, "b": a + 1})["x"], a)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(2, 5), st.integers(1, 2))
def test_channels_last_inputs_and_outputs_hold_the_same_picture(channels, height, width, batch):
    shape, last = (batch, channels, height, width), (batch, height, width, channels)
    session = Echo((spec("x", last),), (spec("y", last),))
    adapter = Adapter(session, (spec("x", shape, layout="NCHW"),), (spec("y", shape, layout="NCHW"),))
    array = image(*shape)
    result = adapter({"x": array})["y"]
    if shape == last:
        return  # the two orders cannot be told apart
    assert np.array_equal(result, array)
    assert np.array_equal(session.fed["x"], array.transpose(0, 2, 3, 1))


def test_channels_first_is_found_where_the_original_has_them_last():
    session = Echo((spec("x", (1, 3, 4, 5)),), (spec("y", (1, 3, 4, 5)),))
    adapter = Adapter(session, (spec("x", (1, 4, 5, 3)),), (spec("y", (1, 4, 5, 3)),))
    array = image(1, 4, 5, 3)
    assert np.array_equal(adapter({"x": array})["y"], array)


@pytest.mark.parametrize("own", ["int32", "int64", "uint8", "int8", "float32", "bool"])
def test_integers_are_widened_and_narrowed(own):
    session = Echo((spec("t", (1, 3), own),), (spec("y", (1, 3), own),))
    adapter = Adapter(session, (spec("t", (1, 3), "int64"),), (spec("y", (1, 3), "int64"),))
    result = adapter({"t": np.array([[0, 1, 1]], np.int64)})["y"]
    assert np.array_equal(np.asarray(result, np.int64), [[0, 1, 1]])


@given(
    st.sampled_from(["int8", "uint8", "int16"]),
    st.floats(0.001, 0.5),
    st.floats(-1, 1),
)
def test_quantized_inputs_and_outputs_go_through_scale_and_zero_point(kind, scale, offset):
    limits = np.iinfo(kind)
    zero = round(limits.min + (limits.max - limits.min) * (offset + 1) / 2)
    session = Echo((spec("x", (1, 64), kind, "", scale, zero),), (spec("y", (1, 64), kind, "", scale, zero),))
    adapter = Adapter(session, (spec("x", (1, 64)),), (spec("y", (1, 64)),))
    array = image(1, 64) * 100
    result = adapter({"x": array})["y"]
    low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
    assert result.dtype == np.float32
    assert np.all(np.abs(result - np.clip(array, low, high)) <= scale * 0.5001 + 1e-4)


def test_an_open_batch_fits():
    session = Echo((spec("x", (-1, 3)),), (spec("y", (-1, 3)),))
    array = image(4, 3)
    assert np.array_equal(Adapter(session, (spec("x", (4, 3)),), (spec("y", (4, 3)),))({"x": array})["y"], array)


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        ([(1, 3), (1, 3)], [(1, 3)], "the artifact has 1 inputs, the original 2"),
        ([(1, 3)], [(1, 3), (1, 1)], "the artifact has 1 outputs, the original 2"),
        ([(1, 4)], [(1, 3)], r"input x has shape \[1, 3\], the original's a0 \[1, 4\]"),
        ([(1, 3)], [(2, 3)], r"output x has shape \[1, 3\], the original's b0 \[2, 3\]"),
        ([(1, 3, 1)], [(1, 3)], r"input x has shape \[1, 3\], the original's a0 \[1, 3, 1\]"),
    ],
)
def test_what_does_not_fit_is_told_with_both_shapes(inputs, outputs, told):
    session = Echo((spec("x", (1, 3)),), (spec("x", (1, 3)),))
    with pytest.raises(ArtifactError, match=told):
        Adapter(
            session,
            tuple(spec(f"a{i}", s) for i, s in enumerate(inputs)),
            tuple(spec(f"b{i}", s) for i, s in enumerate(outputs)),
        )


def test_an_output_of_another_shape_than_declared_is_told():
    session = Echo((spec("x", (1, 3)),), (spec("y", (-1, -1)),), results=[image(2, 2)])
    adapter = Adapter(session, (spec("x", (1, 3)),), (spec("y", (1, 3)),))
    with pytest.raises(ArtifactError, match=r"output y has shape \[2, 2\], the original's \[1, 3\]"):
        adapter({"x": image(1, 3)})
