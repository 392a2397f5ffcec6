from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.core.errors import ArtifactError
from edgeopt.inspection.inspect_onnx import inspect


def _save(path, nodes, inputs, outputs, constants, **options):
    graph = helper.make_graph(
        nodes, "t", [helper.make_tensor_value_info(n, 1, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, 1, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path, **options)
    return path


def test_open_batch_counts_as_one_and_says_so(tmp_path):
    path = _save(
        tmp_path / "m.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 5]},
        {"w": np.ones((4, 5), np.float32)},
    )  # fmt: skip
    found = inspect(path)
    assert found.macs == 20
    assert found.inputs[0].shape == (-1, 4)
    assert any("batch of 1" in note for note in found.notes)


def test_other_open_dimensions_leave_macs_null_with_a_reason(tmp_path):
    path = _save(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="proj")], {"x": ["n", "t", 4]},
        {"y": ["n", "t", 5]}, {"w": np.ones((4, 5), np.float32)},
    )  # fmt: skip
    found = inspect(path)
    assert found.macs is None
    assert found.parameters == 20
    assert any("macs is null" in note and "proj" in note for note in found.notes)


def test_qdq_weights_count_as_stored_and_scales_do_not(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["bf"], axis=0),
        helper.make_node("Conv", ["x", "wf", "bf"], ["y"]),
    ]
    constants = {
        "w": np.ones((8, 3, 3, 3), np.int8), "s": np.ones(8, np.float32), "z": np.zeros(8, np.int8),
        "b": np.ones(8, np.int32), "sb": np.ones(8, np.float32),
    }  # fmt: skip
    found = inspect(_save(tmp_path / "m.onnx", nodes, {"x": [1, 3, 5, 5]}, {"y": [1, 8, 3, 3]}, constants))
    assert found.weights_by_dtype == {"int8": 216, "int32": 8}
    assert found.weight_bytes == 216 + 32
    assert found.macs == 216 * 9
    assert [(layer.op, layer.parameters) for layer in found.layers] == [("Conv", 224)]


def test_external_data_counts_in_the_size(tmp_path):
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = _save(
        tmp_path / "m.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": [1, 64]}, {"y": [1, 64]},
        {"w": np.ones((64, 64), np.float32)}, **options,
    )  # fmt: skip
    found = inspect(path)
    assert found.parameters == 4096
    assert found.size_bytes == path.stat().st_size + (tmp_path / "w.bin").stat().st_size


def test_recurrent_layers_and_control_flow(tmp_path):
    then = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["a"])], "then", [], [helper.make_tensor_value_info("a", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["b"])], "else", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=16),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    constants = {
        "w": np.ones((1, 64, 8), np.float32), "r": np.ones((1, 64, 16), np.float32), "flag": np.array(True),
    }  # fmt: skip
    path = _save(tmp_path / "m.onnx", nodes, {"x": [7, 1, 8]}, {"y": [7, 1, 8], "h": [7, 1, 1, 16]}, constants)
    found = inspect(path)
    assert found.macs == 7 * 4 * 16 * (8 + 16)
    assert found.ops == {"LSTM": 1, "If": 1, "Neg": 1, "Abs": 1}
    assert any("inside control flow" in note for note in found.notes)


def test_operators_outside_the_standard_are_named_as_not_counted(tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], domain="com.example")
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"])], "t", [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("z", 1, [2])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    found = inspect(path)
    assert found.ops == {"com.example.Magic": 1, "Relu": 1}
    assert any("com.example.Magic (1)" in note for note in found.notes)


def test_shape_constants_are_no_parameters(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["a"]), helper.make_node("Clip", ["a", "low", "high"], ["y"])]
    constants = {
        "shape": np.array([1, 4], np.int64), "low": np.array(0, np.float32), "high": np.array(6, np.float32),
    }  # fmt: skip
    found = inspect(_save(tmp_path / "m.onnx", nodes, {"x": [2, 2]}, {"y": [1, 4]}, constants))
    assert (found.parameters, found.macs, found.layers) == (0, 0, ())


def test_onnxruntimes_own_quantized_operators_do_not_hide_what_follows(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearAdd", ["q", "s", "z", "q", "s", "z", "s", "z"], ["sum"], domain="com.microsoft"),
        helper.make_node("QLinearConv", ["sum", "s", "z", "w", "sw", "zw", "s", "z", "b"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("QLinearGlobalAveragePool", ["c", "s", "z", "s", "z"], ["p"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    constants = {
        "s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w": np.ones((8, 3, 3, 3), np.int8),
        "sw": np.ones(8, np.float32), "zw": np.zeros(8, np.int8), "b": np.ones(8, np.int32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "t", [helper.make_tensor_value_info("x", 1, [1, 3, 5, 5])],
        [helper.make_tensor_value_info("y", 1, [1, 8, 1, 1])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    found = inspect(path)
    assert found.macs == 8 * 9 * 27
    assert found.weights_by_dtype == {"int8": 216, "int32": 8}
    assert found.notes == ()


@pytest.mark.timeout(20)
def test_functions_that_explode_are_refused_at_once(tmp_path):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", f"F{level}", ["a"], ["b"],
            [helper.make_node(f"F{level + 1}" if level < 29 else "Neg", [x], [y], domain="own" if level < 29 else "")
             for x, y in (("a", "s"), ("s", "t"), ("t", "b"))], opsets,
        )
        for level in range(30)
    ]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="own")], "t", [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    with pytest.raises(ArtifactError, match="expand to more than"):
        inspect(path)
