"""Each rewrite leaves what ONNX Runtime computes as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_graphs import RNG, image, kinds, model_of, run

from edgeopt.exporters import onnx_rewrites as rewrites


def qdq(x, y, name, scale="s", zero="z", kind=None):
    return [
        helper.make_node("QuantizeLinear", [x, scale, zero], [f"{name}_q"], name=f"{name}_q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [y], name=f"{name}_dq"),
    ]


pads = st.tuples(*[st.integers(0, 3)] * 4)


@settings(max_examples=60, deadline=None)
@given(pads, pads, st.integers(1, 2), st.integers(1, 2), st.booleans(), st.sampled_from(["absent", "empty", "zero"]))
def test_a_pad_moves_into_the_convolution(pad, own, stride, dilation, quantized, value):
    top, left, bottom, right = pad
    between = qdq("p", "pq", "q") if quantized else []
    inputs = ["x", "amounts", *{"absent": [], "empty": [""], "zero": ["zero"]}[value]]
    model = model_of(
        [
            helper.make_node("Pad", inputs, ["p"]),
            *between,
            helper.make_node(
                "Conv",
                ["pq" if quantized else "p", "w"],
                ["y"],
                pads=list(own),
                strides=[stride] * 2,
                dilations=[dilation] * 2,
            ),
        ],
        {
            "amounts": np.array([0, 0, top, left, 0, 0, bottom, right], np.int64),
            "w": image(2, 3, 3, 3),
            "s": np.float32(0.05),
            "z": np.int8(7),
            **({"zero": np.float32(0)} if value == "zero" else {}),
        },
        {"x": (1, 3, 9, 8)},
    )
    x = image(1, 3, 9, 8)
    before = run(model, x=x)[0]
    assert rewrites.fold_pads(model) == 1
    assert "Pad" not in kinds(model) and "amounts" not in {i.name for i in model.graph.initializer}
    np.testing.assert_allclose(run(model, x=x)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", ["value", "channels", "negative", "reflect", "auto_pad", "read twice", "is an output", "variable", "axes"]
)
def test_a_pad_that_is_no_zero_border_stays(case):
    amounts = [0, 0, 1, 1, 0, 0, 1, 1]
    if case == "channels":
        amounts = [0, 1, 0, 0, 0, 1, 0, 0]
    elif case == "negative":
        amounts = [0, 0, -1, 1, 0, 0, 1, 1]
    pad_inputs = ["x", "amounts", "value"]
    if case == "axes":
        amounts, pad_inputs = [1, 1, 1, 1], ["x", "amounts", "", "axes"]
    elif case == "variable":
        pad_inputs = ["x", "amounts", "given"]
    channels = 5 if case == "channels" else 3
    conv = {"auto_pad": "SAME_UPPER"} if case == "auto_pad" else {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Pad", pad_inputs, ["p"], mode="reflect" if case == "reflect" else "constant"),
        helper.make_node("Conv", ["p", "w"], ["y"], **conv),
    ]
    outputs = ["y"]
    if case == "read twice":
        nodes.append(helper.make_node("Relu", ["p"], ["also"]))
        outputs.append("also")
    elif case == "is an output":
        outputs.append("p")
    inputs = {"x": (1, 3, 9, 8)} | ({"given": ()} if case == "variable" else {})
    model = model_of(
        nodes,
        {
            "amounts": np.array(amounts, np.int64),
            "value": np.float32(1 if case == "value" else 0),
            "w": image(2, channels, 3, 3),
            "axes": np.array([2, 3], np.int64),
        },
        inputs,
        outputs,
    )
    feeds = {"x": image(1, 3, 9, 8)} | ({"given": np.array(2, np.float32)} if case == "variable" else {})
    before = run(model, **feeds)
    assert rewrites.fold_pads(model) == 0
    for a, b in zip(run(model, **feeds), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_pad_before_two_convolutions_is_not_lost():
    model = model_of(
        [
            helper.make_node("Pad", ["x", "amounts"], ["p"]),
            helper.make_node("Conv", ["p", "w"], ["a"]),
            helper.make_node("Conv", ["p", "w"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"amounts": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "w": image(2, 3, 3, 3)},
        {"x": (1, 3, 9, 8)},
    )
    x = image(1, 3, 9, 8)
    before = run(model, x=x)[0]
    rewrites.fold_pads(model)
    np.testing.assert_allclose(run(model, x=x)[0], before, rtol=1e-5, atol=1e-5)


def quantized_conv(zero=-5, weight_zero=None):
    weight = RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    return model_of(
        [
            *qdq("x", "xd", "in"),
            helper.make_node(
                "DequantizeLinear", ["w", "ws", *(["wz"] if weight_zero is not None else [])], ["wd"], axis=0
            ),
            helper.make_node("Conv", ["xd", "wd"], ["c"]),
            *qdq("c", "y", "out", "s2", "z2"),
        ],
        {
            "s": np.float32(0.03),
            "z": np.int8(zero),
            "s2": np.float32(0.2),
            "z2": np.int8(12),
            "w": weight,
            "ws": RNG.uniform(0.001, 0.01, 4).astype(np.float32),
            **({"wz": np.zeros(4, np.int8)} if weight_zero is not None else {}),
        },
        {"x": (1, 3, 8, 8)},
    )


@pytest.mark.parametrize("weight_zero", [None, 0])
@pytest.mark.parametrize("zero", [-128, -5, 0, 127])
def test_unsigned_activations_have_the_same_real_values(zero, weight_zero):
    model = quantized_conv(zero, weight_zero)
    x = image(1, 3, 8, 8) * 3
    before = run(model, x=x)[0]
    assert rewrites.shift_activations_to_uint8(model) == 4
    np.testing.assert_array_equal(run(model, x=x)[0], before)
    types = {i.name: i.data_type for i in model.graph.initializer}
    assert types["w"] == TensorProto.INT8 and types["z_uint8"] == TensorProto.UINT8 and "z" not in types


def test_shifting_again_changes_nothing():
    model = quantized_conv()
    rewrites.shift_activations_to_uint8(model)
    content = model.SerializeToString()
    assert rewrites.shift_activations_to_uint8(model) == 0 and model.SerializeToString() == content


def test_a_zero_point_that_weights_and_activations_share_serves_both():
    model = model_of(
        [
            *qdq("x", "xd", "in"),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
            helper.make_node("Mul", ["xd", "wd"], ["y"]),
        ],
        {"s": np.float32(0.03), "z": np.int8(0), "w": np.array([3, -4], np.int8)},
        {"x": (2,)},
    )
    x = image(2)
    before = run(model, x=x)[0]
    rewrites.shift_activations_to_uint8(model)
    np.testing.assert_array_equal(run(model, x=x)[0], before)


@pytest.mark.parametrize("same", [True, False])
def test_repeated_quantization_is_merged_only_when_it_is_the_same(same):
    model = model_of(
        [
            *qdq("x", "a", "one"),
            *qdq("a", "b", "two", "s" if same else "s2", "z"),
            helper.make_node("Relu", ["b"], ["y"]),
        ],
        {"s": np.float32(0.03), "s2": np.float32(0.07), "z": np.int8(3)},
        {"x": (2, 5)},
    )
    x = image(2, 5)
    before = run(model, x=x)[0]
    assert rewrites.merge_repeated_quantization(model) == int(same)
    assert kinds(model).count("QuantizeLinear") == (1 if same else 2)
    np.testing.assert_array_equal(run(model, x=x)[0], before)


def test_equal_values_under_other_names_are_the_same():
    model = model_of(
        [
            *qdq("x", "a", "one"),
            *qdq("a", "b", "two", "t", "u"),
            *qdq("b", "c", "three"),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"s": np.float32(0.03), "t": np.float32(0.03), "z": np.int8(3), "u": np.int8(3)},
        {"x": (2, 5)},
    )
    x = image(2, 5)
    before = run(model, x=x)[0]
    assert rewrites.merge_repeated_quantization(model) == 2
    np.testing.assert_array_equal(run(model, x=x)[0], before)
    assert kinds(model) == ["QuantizeLinear", "DequantizeLinear", "Relu"]


@pytest.mark.parametrize(("scale", "pooled"), [(0.05, True), (4000.0, False)])
def test_a_mean_is_pooled_in_integers_where_the_kernel_takes_its_scales(scale, pooled):
    model = model_of(
        [
            *qdq("x", "x8", "a"),
            helper.make_node("ReduceMean", ["x8", "axes"], ["m"], keepdims=0, name="mean"),
            *qdq("m", "y", "b", scale="t", zero="u"),
        ],
        {
            "s": np.float32(scale),
            "z": np.uint8(128),
            "t": np.float32(0.01),
            "u": np.uint8(0),
            "axes": np.array([2, 3]),
        },
        {"x": (1, 3, 4, 4)},
    )
    model = onnx.shape_inference.infer_shapes(model)
    assert rewrites.pool_means(model) == int(pooled)
    assert ("GlobalAveragePool" in kinds(model)) == pooled
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": np.abs(image(1, 3, 4, 4)) * np.float32(scale)})[0]).all()


@given(st.permutations(range(5)))
def test_nodes_are_put_in_order_whatever_order_they_had(order):
    chain = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5)]
    model = model_of([chain[i] for i in order], {}, {"t0": (2,)}, ["t5"])
    rewrites.sort_nodes(model)
    assert [n.input[0] for n in model.graph.node] == [f"t{i}" for i in range(5)]
    run(model, t0=image(2))


def test_a_cycle_is_no_endless_loop():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    with pytest.raises(ValueError, match="cycle"):
        rewrites.sort_nodes(model_of(nodes, {}, {"x": (2,)}, ["b"]))


def test_dead_nodes_and_unused_constants_go_but_outputs_stay():
    model = model_of(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Add", ["x", "c"], ["d"]),
            helper.make_node("Relu", ["d"], ["e"]),
        ],
        {"c": np.float32(1), "kept": np.float32(2)},
        {"x": (2,)},
        ["y", "kept"],
    )
    rewrites.remove_dead_nodes(model)
    assert kinds(model) == ["Relu"] and [i.name for i in model.graph.initializer] == ["kept"]


def test_paths_of_the_machine_are_stripped():
    model = quantized_conv()
    for place in (model, model.graph, model.graph.node[0], model.graph.initializer[0], model.graph.input[0]):
        place.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/secret/net.py")
    for place in (model, model.graph, model.graph.node[1]):
        place.doc_string = "/home/me/secret/net.py"
    rewrites.strip_local_paths(model)
    assert b"secret" not in model.SerializeToString()
