from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core.errors import SourceError, UnsupportedOpError, UsageError
from edgeopt.onnx_import import import_onnx

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


def _value(name, kind=FLOAT, shape=()):
    return helper.make_tensor_value_info(name, kind, shape)


def _branch(name, nodes, shape=(2, 3), constants=()):
    return helper.make_graph(nodes, name, [], [_value(f"{name}_y", FLOAT, shape)], list(constants))


def _if(condition="flag", other_shape=(2, 3)):
    then = _branch("then", [helper.make_node("Relu", ["x"], ["then_y"])])
    otherwise = _branch("else", [helper.make_node("Neg", ["x"], ["else_y"])], other_shape)
    return helper.make_node("If", [condition], ["y"], name="choice", then_branch=then, else_branch=otherwise)


def _body(nodes, states, yielded=(), constants=(), tag=""):
    """A loop body: trip, condition and states in; condition, next states and what it yields out."""
    return helper.make_graph(
        [helper.make_node("Identity", [f"go{tag}"], [f"go_on{tag}"]), *nodes], f"body{tag}",
        [_value(f"trip{tag}", INT64), _value(f"go{tag}", BOOL), *(_value(n, FLOAT, s) for n, s in states)],
        [_value(f"go_on{tag}", BOOL), *(_value(f"{n}_next", FLOAT, s) for n, s in states),
         *(_value(n, FLOAT, s) for n, s in yielded)],
        list(constants),
    )  # fmt: skip


@pytest.mark.parametrize("flag", [True, False])
def test_a_constant_condition_takes_its_branch_alone(same_as_ort, make_model, random, flag):
    x = random(2, 3)
    imported = same_as_ort(make_model([_if()], {"x": x}, {"flag": np.array(flag)}), {"x": x})
    assert torch.where not in {n.target for n in imported.module.graph.nodes}
    assert not imported.notes


@pytest.mark.parametrize("flag", [True, False])
def test_a_computed_condition_computes_both_branches_and_says_so(same_as_ort, make_model, random, flag):
    fed = {"x": random(2, 3), "flag": np.array(flag)}
    imported = same_as_ort(make_model([_if()], fed), fed)
    assert "both branches are computed" in imported.notes[0]


def test_a_condition_on_shapes_is_constant(same_as_ort, make_model, random):
    x = random(2, 3)
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "one"], ["width"]),
        helper.make_node("Equal", ["width", "three"], ["flag"]),
        _if(),
    ]
    constants = {"one": np.array(1), "three": np.array(3)}
    assert not same_as_ort(make_model(nodes, {"x": x}, constants), {"x": x}).notes


def test_branches_of_different_shapes_need_a_constant(tmp_path, make_model, random):
    wide = _branch("else", [helper.make_node("Concat", ["x", "x"], ["else_y"], axis=0)], (4, 3))
    then = _branch("then", [helper.make_node("Relu", ["x"], ["then_y"])])
    node = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=then, else_branch=wide)
    path = tmp_path / "m.onnx"
    fed = {"x": random(2, 3), "flag": np.array(True)}
    onnx.save(make_model([node], fed), path)
    with pytest.raises(UnsupportedOpError, match="branches give different shapes"):
        import_onnx(path)
    imported = import_onnx(path, None, {"flag": np.array(False)})
    assert [s.name for s in imported.inputs] == ["x"]
    assert tuple(imported.module(torch.zeros(2, 3)).shape) == (4, 3)
    with pytest.raises(UsageError, match="has no input 'flags'; did you mean 'flag'"):
        import_onnx(path, None, {"flags": np.array(False)})
    with pytest.raises(UsageError, match="type BOOL, the value given for it of int64"):
        import_onnx(path, None, {"flag": np.array(0)})


def test_a_loop_of_constant_length_unrolls_with_shared_weights(same_as_ort, make_model, random):
    x = random(2, 3)
    body = _body(
        [helper.make_node("MatMul", ["v", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["v_next"]),
         helper.make_node("Add", ["v_next", "half"], ["seen"])],
        [("v", (2, 3))], [("seen", (2, 3))], [numpy_helper.from_array(np.float32(0.5), "half")],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["last", "y"], name="steps", body=body)
    constants = {"trips": np.array(4), "w": random(3, 3)}
    model = make_model([node], {"x": x}, constants, {"last": FLOAT, "y": FLOAT})
    module = same_as_ort(model, {"x": x}).module
    assert sum(isinstance(m, torch.nn.Linear) for m in module.modules()) == 1


def test_a_loop_ends_when_its_constant_condition_does(same_as_ort, make_model, random):
    x = random(2)
    body = helper.make_graph(
        [helper.make_node("Less", ["trip", "two"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["v_next"])], "body",
        [_value("trip", INT64), _value("go", BOOL), _value("v", FLOAT, (2,))],
        [_value("go_on", BOOL), _value("v_next", FLOAT, (2,))], [numpy_helper.from_array(np.array(2), "two")],
    )  # fmt: skip
    node = helper.make_node("Loop", ["", "go0", "x"], ["y"], body=body)
    same_as_ort(make_model([node], {"x": x}, {"go0": np.array(True)}), {"x": x})


def test_a_loop_whose_end_depends_on_values_is_refused(tmp_path, make_model, random):
    body = helper.make_graph(
        [helper.make_node("ReduceSum", ["v"], ["s"], keepdims=0), helper.make_node("Less", ["s", "ten"], ["go_on"]),
         helper.make_node("Add", ["v", "v"], ["v_next"])], "body",
        [_value("trip", INT64), _value("go", BOOL), _value("v", FLOAT, (2,))],
        [_value("go_on", BOOL), _value("v_next", FLOAT, (2,))], [numpy_helper.from_array(np.float32(10), "ten")],
    )  # fmt: skip
    node = helper.make_node("Loop", ["", "go0", "x"], ["y"], body=body)
    path = tmp_path / "m.onnx"
    onnx.save(make_model([node], {"x": random(2)}, {"go0": np.array(True)}), path)
    with pytest.raises(UnsupportedOpError, match="how often it runs depends on the input's values"):
        import_onnx(path)


@pytest.mark.timeout(120)
def test_loops_within_loops_end_at_a_bound(tmp_path, make_model, random):
    inner = _body([helper.make_node("Add", ["v", "v"], ["v_next"])], [("v", (2,))])
    for depth in range(6):
        wrapped = helper.make_node("Loop", ["many", "", f"u{depth}"], [f"u{depth}_next"], body=inner)
        inner = _body([wrapped], [(f"u{depth}", (2,))], tag=str(depth))
    node = helper.make_node("Loop", ["many", "", "x"], ["y"], name="bomb", body=inner)
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model([node], {"x": random(2)}, {"many": np.array(50)}).SerializeToString())
    with pytest.raises(SourceError, match="unrolls to more than 20000 nodes"):
        import_onnx(path)


@pytest.mark.parametrize(("directions", "axes"), [([0], [0]), ([1], [0]), ([0], [1])])
def test_scan_unrolls(same_as_ort, make_model, random, directions, axes):
    x = random(2, 3, 4)
    width = (3, 4) if axes == [0] else (2, 4)
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["s_next"]), helper.make_node("Mul", ["s_next", "e"], ["seen"])], "body",
        [_value("s", FLOAT, width), _value("e", FLOAT, width)],
        [_value("s_next", FLOAT, width), _value("seen", FLOAT, width)],
    )  # fmt: skip
    node = helper.make_node(
        "Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_directions=directions,
        scan_input_axes=axes, scan_output_axes=[-1],
    )  # fmt: skip
    constants = {"start": np.zeros(width, np.float32)}
    same_as_ort(make_model([node], {"x": x}, constants, {"last": FLOAT, "y": FLOAT}), {"x": x})


def test_an_unknown_operator_in_the_branch_taken_is_named(tmp_path, make_model, random):
    then = _branch(
        "then",
        [helper.make_node("Multinomial", ["x"], ["m"]), helper.make_node("Cast", ["m"], ["then_y"], to=1)],
        (2, 1),
    )
    otherwise = _branch("else", [helper.make_node("Relu", ["x"], ["else_y"])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=otherwise)
    for flag in (True, False):
        path = tmp_path / f"{flag}.onnx"
        onnx.save(make_model([node], {"x": random(2, 3)}, {"flag": np.array(flag)}), path)
    assert import_onnx(tmp_path / "False.onnx").module(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(UnsupportedOpError, match=r"operator Multinomial .*random numbers"):
        import_onnx(tmp_path / "True.onnx")
