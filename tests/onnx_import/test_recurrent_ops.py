from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from edgeopt.core.errors import SourceError, UnsupportedOpError
from edgeopt.onnx_import import import_onnx

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TIME, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4


def _layer(
    make_model,
    random,
    op,
    *,
    directions=1,
    bias=True,
    states=True,
    peepholes=False,
    lengths=None,
    stored=(),
    **attributes,
):
    """Return a model of one recurrent node with all its outputs, and its inputs."""
    gates = GATES[op]
    fed = {"x": random(TIME, BATCH, INPUTS)}
    kept = {"w": random(directions, gates * HIDDEN, INPUTS), "r": random(directions, gates * HIDDEN, HIDDEN, seed=1)}
    names = ["x", "w", "r", "", "", "", "", ""]
    if bias:
        kept["b"], names[3] = random(directions, 2 * gates * HIDDEN, seed=2), "b"
    if lengths is not None:
        fed["n"], names[4] = np.array(lengths, np.int32), "n"
    if states:
        fed["h"], names[5] = random(directions, BATCH, HIDDEN, seed=3), "h"
        if op == "LSTM":
            fed["c"], names[6] = random(directions, BATCH, HIDDEN, seed=4), "c"
    if peepholes:
        kept["p"], names[7] = random(directions, 3 * HIDDEN, seed=5), "p"
    for name in stored:
        kept[name] = fed.pop(name)
    while not names[-1]:
        names.pop()
    outputs = ["y", "last"] + (["cell"] if op == "LSTM" else [])
    node = helper.make_node(op, names, outputs, name="layer", hidden_size=HIDDEN, **attributes)
    return make_model([node], fed, kept, dict.fromkeys(outputs, TensorProto.FLOAT)), fed


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "attributes", "kind"), [
    ("LSTM", {}, nn.LSTM), ("GRU", {"linear_before_reset": 1}, nn.GRU), ("RNN", {}, nn.RNN),
])  # fmt: skip
def test_layers_become_those_of_pytorch(same_as_ort, make_model, random, op, attributes, kind, direction):
    count = 2 if direction == "bidirectional" else 1
    model, fed = _layer(make_model, random, op, directions=count, direction=direction, **attributes)
    module = same_as_ort(model, fed).module
    assert [type(m) for m in module.children()] == [kind]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_forms_that_pytorch_lacks_are_loops_with_the_same_numbers(same_as_ort, make_model, random, data):
    op = data.draw(st.sampled_from(sorted(GATES)))
    direction = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = 2 if direction == "bidirectional" else 1
    form = {"bias": data.draw(st.booleans()), "states": data.draw(st.booleans())}
    attributes = {"direction": direction}
    each = {"LSTM": ["HardSigmoid", "Relu", "Tanh"], "GRU": ["Sigmoid", "Softsign"], "RNN": ["Relu"]}[op]
    if data.draw(st.booleans()):
        attributes["activations"] = each * count
    if data.draw(st.booleans()):
        attributes["clip"] = 0.5
    if op == "LSTM":
        form["peepholes"] = data.draw(st.booleans())
    else:
        form["lengths"] = data.draw(st.sampled_from([None, [3, 5], [1, 2]]))
    if op == "GRU":
        attributes["linear_before_reset"] = data.draw(st.sampled_from([0, 1]))
    model, fed = _layer(make_model, random, op, directions=count, **form, **attributes)
    same_as_ort(model, fed)


def test_lengths_known_to_be_full_leave_the_layer_of_pytorch(same_as_ort, make_model, random):
    model, fed = _layer(make_model, random, "LSTM", lengths=[TIME, TIME], stored=("n",))
    assert [type(m) for m in same_as_ort(model, fed).module.children()] == [nn.LSTM]


def test_both_kinds_survive_torch_export(tmp_path, make_model, random):
    for attributes in ({}, {"clip": 1.0}):
        model, fed = _layer(make_model, random, "LSTM", **attributes)
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        module = import_onnx(path).module
        arguments = tuple(torch.from_numpy(a) for a in fed.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            program = torch.export.export(module, arguments)
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))


def test_a_node_used_on_two_inputs_shares_its_weights(same_as_ort, make_model, random):
    fed = {"a": random(TIME, BATCH, INPUTS), "b": random(TIME, BATCH, INPUTS, seed=1)}
    kept = {"w": random(1, HIDDEN, INPUTS), "r": random(1, HIDDEN, HIDDEN)}
    nodes = [helper.make_node("RNN", [x, "w", "r"], [f"y{x}"], hidden_size=HIDDEN) for x in fed]
    model = make_model(nodes, fed, kept, dict.fromkeys(("ya", "yb"), TensorProto.FLOAT))
    assert sum(isinstance(m, nn.RNN) for m in same_as_ort(model, fed).module.modules()) == 1


def test_damaged_layers_are_refused(tmp_path, make_model, random):
    def refusal(**change):
        model, _ = _layer(make_model, random, "LSTM", **change)
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises((SourceError, UnsupportedOpError)) as caught:
            import_onnx(path)
        return str(caught.value)

    assert "direction" in refusal(directions=1, direction="bidirectional")
    assert "activations" in refusal(activations=["Sigmoid"])
    assert "frobnicate" in refusal(activations=["Frobnicate", "Tanh", "Tanh"]).lower()
