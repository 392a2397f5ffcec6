from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn

from edgeopt.core.errors import UnsupportedOpError

few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


def kinds(imported):
    return {type(m) for m in imported.module.modules()}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_is_a_real_module(check_op, random, rank, bias):
    args = (random(2, 4, *[7] * rank), random(6, 2, *[3] * rank), random(6) if bias else None)
    imported = check_op("Conv", *args, stored=(1, 2), group=2, strides=[2] * rank, pads=[1] * (2 * rank))
    assert {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank] in kinds(imported)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3])
def test_conv_auto_pad(check_op, random, auto_pad, stride, kernel):
    args = (random(1, 3, 8, 9), random(4, 3, kernel, kernel))
    check_op("Conv", *args, stored=(1,), strides=[stride, stride], auto_pad=auto_pad)


@few
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    group=st.sampled_from([1, 2, 4]),
)
def test_conv_any_geometry(check_op, random, size, kernel, stride, dilation, pads, group):
    if any(n + pads[i] + pads[i + 2] < (kernel[i] - 1) * dilation[i] + 1 for i, n in enumerate(size)):
        return
    check_op(
        "Conv", random(1, 4, *size), random(8, 4 // group, *kernel), random(8), stored=(1, 2),
        strides=stride, dilations=dilation, pads=pads, group=group,
    )  # fmt: skip


def test_conv_with_computed_weight(check_op, random):
    check_op("Conv", random(1, 3, 6, 6), random(4, 3, 3, 3), random(4), pads=[1, 0, 1, 2])


def test_conv_over_four_axes_is_refused_with_its_place(check_op, random):
    with pytest.raises(UnsupportedOpError, match=r"Conv at node 'the_conv'.*4 spatial axes"):
        check_op("Conv", random(1, 1, 3, 3, 3, 3), random(1, 1, 2, 2, 2, 2), stored=(1,))


@few
@given(
    size=st.integers(3, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    extra=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_conv_transpose_any_geometry(check_op, random, size, kernel, stride, pads, extra, dilation):
    out = (size - 1) * stride + (kernel - 1) * dilation + 1 + extra - sum(pads)
    if extra >= max(stride, dilation) or extra >= stride or out < 1:
        return
    check_op(
        "ConvTranspose", random(1, 4, size, size), random(4, 3, kernel, kernel), random(3), stored=(1, 2),
        strides=[stride] * 2, pads=[pads[0], pads[0], pads[1], pads[1]], output_padding=[extra] * 2,
        dilations=[dilation] * 2,
    )  # fmt: skip


@pytest.mark.parametrize("attributes", [
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [10, 11]}, {"group": 2},
])  # fmt: skip
def test_conv_transpose_forms(check_op, random, attributes):
    weight = random(4, 2, 3, 3)
    imported = check_op("ConvTranspose", random(1, 4, 5, 5), weight, stored=(1,), strides=[2, 2], **attributes)
    assert nn.ConvTranspose2d in kinds(imported)


@few
@given(
    size=st.tuples(st.integers(4, 11), st.integers(4, 11)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    ceil=st.booleans(),
    include=st.booleans(),
    op=st.sampled_from(["MaxPool", "AveragePool"]),
)
def test_pool_any_geometry(check_op, random, size, kernel, stride, pads, ceil, include, op):
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return
    if any(n + pads[i] + pads[i + 2] < kernel[i] for i, n in enumerate(size)):
        return
    extra = {"count_include_pad": int(include)} if op == "AveragePool" else {}
    check_op(
        op, random(2, 3, *size), kernel_shape=kernel, strides=stride, pads=pads, ceil_mode=int(ceil), opset=19, **extra
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_pool_ranks_and_auto_pad(check_op, random, rank, op, auto_pad):
    check_op(op, random(1, 2, *[7] * rank), kernel_shape=[3] * rank, strides=[2] * rank, auto_pad=auto_pad)


def test_dilated_max_pool(check_op, random):
    check_op("MaxPool", random(1, 2, 9, 9), kernel_shape=[3, 3], dilations=[2, 2], pads=[1, 0, 1, 2])


def test_dilated_average_pool_and_indices_are_refused(check_op, random):
    with pytest.raises(UnsupportedOpError, match="dilated"):
        check_op("AveragePool", random(1, 2, 9, 9), kernel_shape=[3, 3], dilations=[2, 2], opset=19)
    with pytest.raises(UnsupportedOpError, match="Indices"):
        check_op("MaxPool", random(1, 2, 9, 9), kernel_shape=[3, 3], outputs=(TensorProto.FLOAT, TensorProto.INT64))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(check_op, random, rank, op):
    check_op(op, random(2, 3, *[5] * rank))


def test_lp_pool(check_op, random):
    check_op("LpPool", random(1, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], p=2)


def test_uneven_max_pool_after_relu_pads_with_zero(same_as_ort, make_model, random):
    from onnx import helper

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["y"], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    ]
    x = random(1, 3, 8, 8)
    imported = same_as_ort(make_model(nodes, {"x": x}), {"x": x})
    pads = [n for n in imported.module.graph.nodes if n.kwargs.get("value") is not None]
    assert [n.kwargs["value"] for n in pads] == [0.0]


def test_shared_weights_stay_one_module(same_as_ort, make_model, random):
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "stem.weight"], ["y"], pads=[1, 1, 1, 1]),
    ]
    x = random(1, 3, 6, 6)
    imported = same_as_ort(make_model(nodes, {"x": x}, {"stem.weight": random(3, 3, 3, 3)}), {"x": x})
    assert list(imported.module.state_dict()) == ["stem.weight"]


def test_norm_layers_that_start_out_equal_stay_apart(same_as_ort, make_model, random):
    from onnx import helper

    nodes = [
        helper.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "one", "zero", "zero", "one"], ["y"], name="second"),
    ]
    x = random(1, 3, 6, 6)
    constants = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    imported = same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x})
    norms = [m for m in imported.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert norms[0].weight.data_ptr() != norms[1].weight.data_ptr()
