from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from torch import nn

from edgeopt.core.errors import UnsupportedOpError

INT64 = TensorProto.INT64


def kinds(imported):
    return {type(m) for m in imported.module.modules()}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("c", [(5,), (1, 5), (3, 5), (3, 1), (), (1,), None])
def test_gemm(check_op, random, trans_a, trans_b, alpha, beta, c):
    a = random(*((4, 3) if trans_a else (3, 4)))
    b = random(*((5, 4) if trans_b else (4, 5)))
    bias = None if c is None else random(*c)
    imported = check_op("Gemm", a, b, bias, stored=(1, 2), transA=trans_a, transB=trans_b, alpha=alpha, beta=beta)
    assert nn.Linear in kinds(imported)


def test_gemm_of_two_computed_matrices(check_op, random):
    check_op("Gemm", random(3, 4), random(5, 4), random(5), transB=1, alpha=0.5, beta=0.3)


@pytest.mark.parametrize("a", [(4,), (3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_matmul_with_a_stored_matrix_is_linear(check_op, random, a):
    assert nn.Linear in kinds(check_op("MatMul", random(*a), random(4, 5), stored=(1,)))


@pytest.mark.parametrize(("a", "b"), [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((4,), (4,)), ((2, 3, 4), (4,))])
def test_matmul_of_computed_values(check_op, random, a, b):
    check_op("MatMul", random(*a), random(*b))


def test_matmul_with_a_stored_left_side(check_op, random):
    check_op("MatMul", random(3, 4), random(4, 5), stored=(0,))


def test_bias_added_after_matmul_joins_the_layer(same_as_ort, make_model, random):
    nodes = [
        helper.make_node("MatMul", ["x", "encoder.dense.weight"], ["m"]),
        helper.make_node("Add", ["encoder.dense.bias", "m"], ["y"]),
    ]
    x = random(2, 3, 4)
    constants = {"encoder.dense.weight": random(4, 5), "encoder.dense.bias": random(5)}
    imported = same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x})
    assert {k: tuple(v.shape) for k, v in imported.module.state_dict().items()} == {
        "encoder.dense.weight": (5, 4),
        "encoder.dense.bias": (5,),
    }


@pytest.mark.parametrize(("equation", "shapes"), [
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]), ("bhwc,hkc->bhwk", [(2, 3, 4, 5), (3, 6, 5)]), ("ii->i", [(3, 3)]),
])  # fmt: skip
def test_einsum(check_op, random, equation, shapes):
    check_op("Einsum", *(random(*s) for s in shapes), equation=equation)


@pytest.mark.parametrize(("shape", "kind"), [
    ((2, 4), nn.BatchNorm1d), ((2, 4, 5), nn.BatchNorm1d), ((2, 4, 5, 6), nn.BatchNorm2d),
    ((2, 4, 3, 3, 3), nn.BatchNorm3d),
])  # fmt: skip
def test_batch_norm_is_kept(check_op, random, shape, kind):
    args = (random(*shape), random(4), random(4, seed=1), random(4, seed=2), np.abs(random(4, seed=3)) + 0.1)
    assert kind in kinds(check_op("BatchNormalization", *args, stored=(1, 2, 3, 4), epsilon=1e-3))


def test_batch_norm_after_conv_is_not_folded(same_as_ort, make_model, random):
    nodes = [
        helper.make_node("Conv", ["x", "c.weight"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "n.weight", "n.bias", "n.running_mean", "n.running_var"], ["y"]),
    ]
    x = random(1, 3, 5, 5)
    constants = {f"n.{k}": np.abs(random(4, seed=i)) + 0.1
                 for i, k in enumerate(("weight", "bias", "running_mean", "running_var"))}  # fmt: skip
    imported = same_as_ort(make_model(nodes, {"x": x}, {"c.weight": random(4, 3, 3, 3), **constants}), {"x": x})
    assert {"c.weight", *constants} <= set(imported.module.state_dict())


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norm(check_op, random, rank):
    check_op("InstanceNormalization", random(2, 3, *[5] * rank), random(3), random(3, seed=1), stored=(1, 2))


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(check_op, random, axis, bias):
    shape = (2, 3, 4)[axis:]
    args = (random(2, 3, 4), random(*shape), random(*shape, seed=1) if bias else None)
    assert nn.LayerNorm in kinds(check_op("LayerNormalization", *args, stored=(1, 2), axis=axis))


def test_group_norm(check_op, random):
    args = (random(2, 6, 4, 4), random(6), random(6, seed=1))
    check_op("GroupNormalization", *args, stored=(1, 2), num_groups=2, opset=21)


def test_rms_norm(check_op, random):
    check_op("RMSNormalization", random(2, 3, 8), random(8), stored=(1,), opset=23)


def test_other_norms(check_op, random):
    check_op("LRN", random(1, 7, 4, 4), size=5, alpha=0.01, beta=0.6, bias=1.5)
    check_op("LpNormalization", random(2, 3, 4), axis=1, p=1)
    check_op("LpNormalization", random(2, 3, 4))
    check_op("MeanVarianceNormalization", random(2, 3, 4, 4), opset=11)
    with pytest.raises(UnsupportedOpError, match=r"LRN.*even"):
        check_op("LRN", random(1, 7, 4, 4), size=4)


@pytest.mark.parametrize("op", [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSumExp",
])  # fmt: skip
@pytest.mark.parametrize("axes", [[1], [-1, 0], None])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_with_axes_as_attribute_and_as_input(check_op, random, op, axes, keepdims):
    x = random(2, 3, 4)
    stored = None if axes is None else np.array(axes, np.int64)
    check_op(op, x, stored, stored=(1,), opset=18, keepdims=keepdims)
    attribute = {} if axes is None else {"axes": axes}
    check_op(op, x, opset=11, keepdims=keepdims, **attribute)


def test_other_reductions(check_op, random):
    check_op("ReduceLogSum", np.abs(random(2, 3)) + 0.1, axes=[1])
    check_op("ReduceSum", random(2, 3), opset=13, noop_with_empty_axes=1)
    check_op("ReduceSum", np.arange(6).reshape(2, 3), outputs=(INT64,), opset=13)
    check_op("ReduceMean", np.arange(6).reshape(2, 3), outputs=(INT64,), axes=[1])
    check_op("ReduceMean", random(2, 3, 4, 5), axes=[2, 3])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_extremes(check_op, op, last, keepdims):
    x = np.array([[1, 3, 3, 1], [2, 2, 2, 2]], np.float32)
    check_op(op, x, axis=1, select_last_index=last, keepdims=keepdims, outputs=(INT64,))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumsum(check_op, random, exclusive, reverse):
    check_op("CumSum", random(3, 4), np.array(1), stored=(1,), exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(check_op, random, largest):
    k = np.array([2], np.int64)
    check_op("TopK", random(3, 6), k, stored=(1,), largest=largest, outputs=(TensorProto.FLOAT, INT64))


@pytest.mark.parametrize("scale", [(4, 1, 1), (1, 4, 1, 1)])
def test_scale_per_channel_after_conv_joins_the_layer(same_as_ort, make_model, random, scale):
    nodes = [
        helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["a"]),
        helper.make_node("Mul", ["a", "gamma"], ["y"]),
    ]
    x = random(1, 3, 4, 4)
    constants = {"c.weight": random(4, 3, 1, 1), "c.bias": random(4), "gamma": random(*scale)}
    imported = same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x})
    assert set(imported.module.state_dict()) == {"c.weight", "c.bias"}


@pytest.mark.parametrize("scale", [(4,), (4, 1), (1, 1, 1, 4)])
def test_scale_along_another_axis_of_the_same_size_does_not(same_as_ort, make_model, random, scale):
    nodes = [helper.make_node("Conv", ["x", "c.weight"], ["a"]), helper.make_node("Mul", ["a", "gamma"], ["y"])]
    x = random(1, 3, 4, 4)
    constants = {"c.weight": random(4, 3, 1, 1), "gamma": random(*scale)}
    same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x})


def test_scale_after_a_layer_used_twice_does_not(same_as_ort, make_model, random):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "gamma"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    x = random(3, 4)
    same_as_ort(make_model(nodes, {"x": x}, {"w": random(4, 4), "gamma": random(4)}), {"x": x})
