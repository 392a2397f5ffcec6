from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeopt.core.errors import UnsupportedOpError

BOOL, INT64, FLOAT = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT
few = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("shape", [(6, 4), (0, -1), (2, 0, 2, 2), (-1,), (1, 2, 3, 4)])
def test_reshape(check_op, random, shape):
    check_op("Reshape", random(2, 3, 4), ints(*shape), stored=(1,))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(check_op, random, axis):
    check_op("Flatten", random(2, 3, 4), axis=axis)


def test_transpose(check_op, random):
    check_op("Transpose", random(2, 3, 4))
    check_op("Transpose", random(2, 3, 4, 5), perm=[0, 2, 3, 1])


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(check_op, random, opset):
    def call(op, x, axes):
        if opset == 11:
            check_op(op, x, opset=11, axes=axes)
        else:
            check_op(op, x, ints(*axes), stored=(1,), opset=13)

    call("Squeeze", random(2, 1, 3, 1), [1, -1])
    call("Unsqueeze", random(2, 3), [0, -1])
    check_op("Squeeze", random(2, 1, 3, 1), opset=opset)


def test_concat(check_op, random):
    check_op("Concat", random(2, 3, 4), random(2, 1, 4), random(2, 2, 4), stored=(1,), axis=1)
    check_op("Concat", random(2, 3), random(2, 3), axis=-1)


def test_split(check_op, random):
    check_op("Split", random(2, 6), ints(1, 2, 3), stored=(1,), axis=1, outputs=(FLOAT,) * 3)
    check_op("Split", random(2, 6), axis=1, outputs=(FLOAT,) * 3)
    check_op("Split", random(2, 7), axis=1, num_outputs=3, opset=18, outputs=(FLOAT,) * 3)
    check_op("Split", random(2, 6), axis=1, split=[2, 4], opset=11, outputs=(FLOAT,) * 2)


def test_expand_and_tile(check_op, random):
    check_op("Expand", random(3, 1), ints(2, 1, 4), stored=(1,))
    check_op("Expand", random(3, 4), ints(1), stored=(1,))
    check_op("Tile", random(2, 3), ints(2, 3), stored=(1,))


@few
@given(
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=4),
    data=st.data(),
    mode=st.sampled_from(["constant", "reflect", "edge"]),
)
def test_pad_any_axes(check_op, random, shape, data, mode):
    low, high = (-1, 3) if mode == "constant" else (0, min(shape) - 1)
    pads = [data.draw(st.integers(low, high)) for _ in range(2 * len(shape))]
    if any(n + b + a < 1 for n, b, a in zip(shape, pads, pads[len(shape) :], strict=False)):
        return
    value = np.array(1.5, np.float32) if mode == "constant" else None
    check_op("Pad", random(*shape), ints(*pads), value, stored=(1, 2), mode=mode)


def test_pad_forms(check_op, random):
    check_op("Pad", random(1, 2, 4, 4), ints(1, 2, 0, 1), None, ints(-2, 3), stored=(1, 3), opset=18)
    check_op("Pad", random(1, 2, 4, 4), ints(0, 0, 1, 2, 0, 0, 2, 1), stored=(1,), mode="wrap", opset=19)
    check_op("Pad", random(1, 2, 4, 4), ints(*[0] * 8), stored=(1,))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(check_op, random, mode):
    check_op("DepthToSpace", random(2, 12, 3, 4), blocksize=2, mode=mode)


def test_space_to_depth(check_op, random):
    check_op("SpaceToDepth", random(2, 3, 4, 6), blocksize=2)


@few
@given(data=st.data(), shape=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_slice_any(check_op, random, data, shape):
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    extreme = st.one_of(st.integers(-8, 8), st.sampled_from([2**63 - 1, -(2**63) + 1]))
    starts = [data.draw(extreme) for _ in axes]
    ends = [data.draw(extreme) for _ in axes]
    steps = [data.draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in axes]
    for start, end, step, axis in zip(starts, ends, steps, axes, strict=True):
        size = shape[axis]
        before_first = step < 0 and end < -size
        if step < 0 and start < -size:
            return
        if not range(size)[start : None if before_first else end : step]:
            return
    signed = [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    check_op("Slice", random(*shape), ints(*starts), ints(*ends), ints(*signed), ints(*steps), stored=(1, 2, 3, 4))


def test_gather(check_op, random):
    x = random(4, 5, 6)
    for axis in (0, 1, -1):
        check_op("Gather", x, np.array(-2), stored=(1,), axis=axis)
        check_op("Gather", x, ints(0, 2, -1), stored=(1,), axis=axis)
        check_op("Gather", x, ints(1, 2, 3), stored=(1,), axis=axis)
        check_op("Gather", x, np.array([[0, 1], [3, -1]]), stored=(1,), axis=axis)
        check_op("Gather", x, np.array([[0, 1], [3, -1]]), axis=axis)


def test_gather_from_a_stored_table_is_an_embedding(check_op, random):
    imported = check_op("Gather", random(10, 4), np.array([[1, 2, 9], [0, 0, 3]]), stored=(0,))
    assert nn.Embedding in {type(m) for m in imported.module.modules()}


def test_gather_and_scatter_by_element(check_op, random):
    index = np.array([[0, -1, 2], [1, 0, 0]])
    check_op("GatherElements", random(3, 4), index, axis=1)
    check_op("ScatterElements", random(2, 4), index, random(2, 3), axis=1)
    check_op(
        "ScatterElements",
        random(2, 4),
        np.array([[0, 1, 0], [1, 0, 0]]),
        random(2, 3),
        axis=1,
        reduction="add",
        opset=18,
    )
    check_op("GatherND", random(3, 4, 5), np.array([[0, -1], [2, 3]]))
    check_op("ScatterND", random(3, 4, 5), np.array([[0, -1], [2, 3]]), random(2, 5))
    with pytest.raises(UnsupportedOpError, match="batch_dims"):
        check_op("GatherND", random(2, 4, 5), np.array([[1], [2]]), batch_dims=1)


def test_shape_arithmetic_folds_away(same_as_ort, make_model, random):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "axes"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axes": ints(0), "rest": ints(-1)}
    x = random(2, 3, 4)
    imported = same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x})
    assert [n.op for n in imported.module.graph.nodes] == ["placeholder", "call_function", "output"]


def test_constants(check_op, same_as_ort, make_model, random):
    x = random(2, 3)
    for attributes in (
        {"value": numpy_helper.from_array(random(3))}, {"value_float": 2.5}, {"value_floats": [1.0, 2.0, 3.0]},
    ):  # fmt: skip
        nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Add", ["x", "c"], ["y"])]
        same_as_ort(make_model(nodes, {"x": x}), {"x": x})
    fill = helper.make_tensor("v", FLOAT, [1], [3.5])
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("ConstantOfShape", ["s"], ["c"], value=fill),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    same_as_ort(make_model(nodes, {"x": x}), {"x": x})
    check_op("Size", x, outputs=(INT64,))
    check_op("EyeLike", x, k=1)
    check_op(
        "Range", np.array(1, np.int64), np.array(9, np.int64), np.array(3, np.int64), stored=(0, 1, 2), outputs=(INT64,)
    )
    check_op("Trilu", random(4, 4))
    check_op("Trilu", random(4, 4), np.array(1), stored=(1,), upper=0)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(check_op, axis):
    index, depth, values = np.array([[0, 2], [-1, 1]]), np.array(3), np.array([0.5, 2.0], np.float32)
    check_op("OneHot", index, depth, values, stored=(1, 2), axis=axis)


@pytest.mark.parametrize("to", [FLOAT, INT64, TensorProto.INT32, BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_cast(check_op, random, to):
    check_op("Cast", np.round(5 * random(3, 4)), to=to, outputs=(to,))


def test_identity_dropout_castlike(check_op, random):
    check_op("Identity", random(2, 3))
    check_op("Dropout", random(2, 3), opset=11)
    check_op("Dropout", random(2, 3), np.array(0.5, np.float32), stored=(1,), outputs=(FLOAT, BOOL))
    check_op("CastLike", random(2, 3), ints(1), stored=(1,), outputs=(INT64,))


COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]


@few
@given(
    size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    target=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    coordinates=st.sampled_from(COORDINATES),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
)
def test_resize_by_size(check_op, random, size, target, coordinates, mode, nearest):
    extra = {"nearest_mode": nearest} if mode == "nearest" else {}
    check_op(
        "Resize", random(1, 2, *size), None, None, ints(1, 2, *target), stored=(3,), opset=19, mode=mode,
        coordinate_transformation_mode=coordinates, rtol=1e-3, atol=1e-4, **extra,
    )  # fmt: skip


@few
@given(
    size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    scale=st.tuples(st.sampled_from([0.5, 0.8, 1.0, 1.5, 2.0, 2.7]), st.sampled_from([0.6, 1.0, 2.0, 3.0])),
    coordinates=st.sampled_from(COORDINATES),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
)
def test_resize_by_scale(check_op, random, size, scale, coordinates, mode):
    if any(int(n * s) < 1 for n, s in zip(size, scale, strict=True)):
        return
    scales = np.array([1, 1, *scale], np.float32)
    check_op(
        "Resize", random(1, 2, *size), None, scales, stored=(2,), opset=19, mode=mode,
        coordinate_transformation_mode=coordinates, rtol=1e-3, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("attributes", [
    {"mode": "cubic", "cubic_coeff_a": -0.5},
    {"mode": "cubic", "exclude_outside": 1},
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic", "antialias": 1},
])  # fmt: skip
def test_resize_weights_that_torch_lacks(check_op, random, attributes):
    check_op(
        "Resize", random(1, 2, 9, 9), None, None, ints(1, 2, 4, 5), stored=(3,), opset=19, rtol=1e-3, atol=1e-4,
        **attributes,
    )  # fmt: skip


def test_resize_native_forms_use_interpolate(check_op, random):
    two = np.array([1, 1, 2, 2], np.float32)
    for attributes in (
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "cubic"},
    ):
        imported = check_op("Resize", random(1, 2, 3, 4), None, two, stored=(2,), atol=1e-4, **attributes)
        assert [n.target.__name__ for n in imported.module.graph.nodes if n.op == "call_function"] == ["interpolate"]


def test_resize_of_other_axes_and_policies(check_op, random):
    check_op("Resize", random(1, 3, 4, 2), None, np.array([1, 2, 2, 1], np.float32), stored=(2,), mode="nearest")
    check_op("Resize", random(1, 3, 8), None, np.array([1, 1, 2], np.float32), stored=(2,), mode="linear")
    check_op("Resize", random(1, 1, 4, 6), None, None, ints(7, 7), stored=(3,), opset=18, mode="linear", axes=[2, 3],
             keep_aspect_ratio_policy="not_larger")  # fmt: skip


def test_crop_and_resize(check_op, random):
    roi = np.array([0, 0, 0.25, 0.25, 1, 1, 0.75, 0.75], np.float32)
    check_op("Resize", random(1, 2, 8, 8), roi, None, ints(1, 2, 5, 5), stored=(1, 3), mode="linear",
             coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_of_old_opsets(check_op, random, mode):
    scales = np.array([1, 1, 2, 3], np.float32)
    check_op("Upsample", random(1, 2, 3, 4), scales, stored=(1,), opset=9, mode=mode)
    check_op("Upsample", random(1, 2, 3, 4), opset=8, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
