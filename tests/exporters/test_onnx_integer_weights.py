"""Weights that an ONNX graph stores in integers are the float ones, to within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import RNG, image, kinds, model_of, run

from edgeopt.exporters.onnx_integer_weights import Plan, store_weights
from edgeopt.exporters.onnx_weights import stored_weights


def plan(mode="weight_only", bits=8, *, largest=127, block_size=32):
    return Plan(mode=mode, bits=bits, block_size=block_size, largest=largest, kept=())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from([1.0, 1e-3, 1e3, 0.0]),
    st.sampled_from(["dynamic", "weight_only"]),
    st.sampled_from([63, 127]),
)
def test_convolutions(outputs, groups, transposed, size, mode, largest):
    channels = 2 * groups
    shape = (channels, outputs, 3, 3) if transposed else (outputs * groups, 2, 3, 3)
    weight = image(*shape) * np.float32(size)
    kind = "ConvTranspose" if transposed else "Conv"
    model = model_of(
        [helper.make_node(kind, ["x", "w"], ["y"], group=groups)], {"w": weight}, {"x": (1, channels, 6, 6)}
    )
    x = image(1, channels, 6, 6)
    before = run(model, x=x)[0]
    stored = store_weights(model, plan(mode, largest=largest))
    assert stored == (0 if transposed and groups > 1 else 1), "two axes hold the outputs of a grouped transposed one"
    after = run(model, x=x)[0]
    if not stored:
        np.testing.assert_array_equal(after, before)
        return
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    end = largest if mode == "dynamic" else 127
    assert constants["w_int"].dtype == np.int8 and np.abs(constants["w_int"].astype(int)).max() <= end
    assert "w" not in constants
    decoded = constants["w_int"].astype(np.float32) * constants["w_scale"]
    assert np.all(np.abs(decoded - weight) <= constants["w_scale"] * 0.5001)
    bound = 0.5001 * float(constants["w_scale"].max()) * np.abs(x).sum()
    assert np.all(np.abs(after - before) <= bound + 1e-6)


def test_a_weight_shared_by_two_convolutions_is_stored_once():
    model = model_of(
        [
            helper.make_node("Conv", ["x", "w"], ["a"]),
            helper.make_node("Conv", ["x", "w"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"w": image(2, 3, 3, 3)},
        {"x": (1, 3, 8, 8)},
    )
    assert store_weights(model, plan()) == 1
    assert sorted(i.name for i in model.graph.initializer) == ["w_int", "w_scale"]
    run(model, x=image(1, 3, 8, 8))


@pytest.mark.parametrize(("mode", "bits"), [("weight_only", 8), ("weight_only", 4), ("dynamic", 8)])
def test_matrix_products(mode, bits, tmp_path):
    largest = 2 ** (bits - 1) - 1
    integers = RNG.integers(-largest, largest + 1, (64, 5)).astype(np.float32)
    integers[0] = integers[32] = largest  # the end of the grid, in every block
    weight = integers * np.array([0.5, 1e-3, 7.0, 0.01, 1.0], np.float32)
    model = model_of([helper.make_node("Gemm", ["x", "w", "b"], ["y"])], {"w": weight, "b": image(5)}, {"x": (3, 64)})
    model.opset_import[0].version = 21  # the first with 4-bit blocks
    x = image(3, 64)
    before = run(model, x=x)[0]
    assert store_weights(model, plan(mode, bits)) == 1
    assert ("MatMulInteger" in kinds(model)) == (mode == "dynamic")
    after = run(model, x=x)[0]
    step = np.abs(x).max() / 127 if mode == "dynamic" else 1e-6
    assert np.abs(after - before).max() <= 64 * step * np.abs(weight).max()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (own,) = stored_weights(tmp_path / "m.onnx")
    stored = own.values if own.axis == 1 else own.values.T
    np.testing.assert_array_equal(stored, integers)


def test_a_row_of_small_values_beside_a_large_one_keeps_its_own_scale():
    weight = image(64, 16)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, {"x": (1, 5, 64)})
    model.opset_import[0].version = 18
    x = image(1, 5, 64) * np.array([1e3, 1, 1e-3, 0, 1], np.float32)[:, None]
    before = run(model, x=x)[0]
    assert store_weights(model, plan("dynamic")) == 1
    error = np.abs(run(model, x=x)[0] - before)[0].max(1)
    assert np.all(error <= 64 * np.abs(x[0]).max(1) * np.abs(weight).max() / 127), "each row by its own largest value"
    assert error[3] == 0


def test_embeddings_are_looked_up_in_integers():
    table = image(30, 8)
    model = model_of([helper.make_node("Gather", ["w", "i"], ["y"])], {"w": table, "i": np.array([3, 29])}, {})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    before = run(model)[0]
    assert store_weights(model, plan()) == 1
    assert np.abs(run(model)[0] - before).max() <= np.abs(table).max() / 127
    types = {i.name: i.data_type for i in model.graph.initializer}
    assert TensorProto.INT8 in types.values() and "w" not in types


def test_weights_that_stay_in_float_are_left_alone():
    from edgeopt.exporters.kept_layers import fingerprint

    weight = image(4, 3, 3, 3)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": weight}, {"x": (1, 3, 8, 8)})
    content = model.SerializeToString()
    kept = Plan(mode="weight_only", bits=8, block_size=32, largest=127, kept={fingerprint(weight)})
    assert store_weights(model, kept) == 0 and model.SerializeToString() == content
