from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

from edgeopt.core.errors import UnsupportedOpError, UsageError
from edgeopt.onnx_import import CoverageError, import_onnx

timm = pytest.importorskip("timm", reason="needs timm")


def _snr_db(reference: torch.Tensor, result: torch.Tensor) -> float:
    reference, result = reference.detach(), result.detach()
    error = (reference - result).double().square().sum()
    return float("inf") if error == 0 else float(10 * torch.log10(reference.double().square().sum() / error))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a timm model with seeded random weights; return the model, its file and an input."""

    def export(name: str, side: int, batch: bool = False) -> tuple[nn.Module, Path, torch.Tensor]:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        for module in model.modules():  # trained networks have statistics; ones and zeros would hide a swap
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        x = torch.randn(2, 3, side, side)
        path = tmp_path_factory.mktemp("timm") / f"{name}.onnx"
        shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if batch else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False, **shapes)
        return model, path, x

    return export


@pytest.mark.parametrize(("name", "side"), [
    ("mobilenetv3_small_100", 96), ("resnet18", 64), ("efficientnet_lite0", 96), ("convnext_atto", 64),
    ("mobilenetv4_conv_small", 96),
])  # fmt: skip
def test_timm_model_survives_the_round_trip(exported, name, side):
    model, path, x = exported(name, side)
    imported = import_onnx(path)
    with torch.no_grad():
        reference, result = model(x), imported.module(x)
    assert _snr_db(reference, result) >= 100
    assert (reference - result).abs().max() <= 1e-4 * max(1.0, float(reference.abs().max()))
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n, m in imported.module.named_modules() if isinstance(m, nn.Conv2d)} == convolutions
    program = torch.export.export(imported.module, (x,))
    torch.testing.assert_close(program.module()(x), result)
    torch.testing.assert_close(copy.deepcopy(imported.module)(x), result)


def test_symbolic_batch_is_one_unless_given(exported):
    model, path, x = exported("resnet18", 32, batch=True)
    imported = import_onnx(path)
    (spec,) = imported.inputs
    assert spec.shape == (1, 3, 32, 32)
    assert (spec.dtype, spec.layout) == ("float32", "NCHW")
    two = import_onnx(path, {spec.name: (2, 3, 32, 32)})
    assert _snr_db(model(x), two.module(x)) >= 100


def test_two_epochs_of_training_change_the_imported_weights(exported):
    _, path, x = exported("resnet18", 32)
    module = import_onnx(path).module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    assert any(not torch.equal(before[k], v) for k, v in module.state_dict().items() if k.endswith("weight"))


def _model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info(n, 1, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, 1, s) for n, s in outputs], list(initializers),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_other_symbolic_dimensions_must_be_given(tmp_path):
    path = tmp_path / "m.onnx"
    relu = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(_model([relu], [("x", ["n", 3, "h", "w"])], [("y", ["n", 3, "h", "w"])]), path)
    with pytest.raises(UsageError, match=r"input 'x'.*dimension 2 \('h'\) is not fixed; give --input-shape n,3,h,w "):
        import_onnx(path)
    assert import_onnx(path, {"x": (1, 3, 8, 8)}).inputs[0].shape == (1, 3, 8, 8)
    with pytest.raises(UsageError, match="has no input 'image'"):
        import_onnx(path, {"image": (1, 3, 8, 8)})
    with pytest.raises(UsageError, match="dimension 1 is 3"):
        import_onnx(path, {"x": (1, 4, 8, 8)})
    with pytest.raises(UsageError, match="has 4 dimensions"):
        import_onnx(path, {"x": (1, 3)})


def test_a_symbol_given_for_one_input_holds_for_the_other(tmp_path):
    path = tmp_path / "m.onnx"
    add = helper.make_node("Add", ["a", "b"], ["y"])
    onnx.save(_model([add], [("a", ["n", "t"]), ("b", ["n", "t"])], [("y", ["n", "t"])]), path)
    assert [s.shape for s in import_onnx(path, {"a": (2, 5)}).inputs] == [(2, 5), (2, 5)]


def test_unused_inputs_and_several_outputs_are_kept(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    onnx.save(_model(nodes, [("x", [1, 4]), ("unused", [2])], [("z", [1, 4]), ("y", [1, 4])]), path)
    imported = import_onnx(path)
    assert [s.name for s in imported.inputs] == ["x", "unused"]
    assert imported.output_names == ("z", "y")
    z, y = imported.module(torch.ones(1, 4), torch.zeros(2))
    assert (z == -1).all()
    assert (y == 1).all()


def test_channels_last_input_is_recognised(tmp_path):
    path = tmp_path / "m.onnx"
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])
    onnx.save(_model([node], [("x", [1, 8, 8, 3])], [("y", [1, 3, 8, 8])]), path)
    assert import_onnx(path).inputs[0].layout == "NHWC"


def test_every_unsupported_operator_is_named_at_once(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"], name="find"),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Det", ["r"], ["d"], name="first"),
        helper.make_node("Det", ["x"], ["e"], name="second"),
    ]
    model = _model(nodes, [("x", [4, 4])], [("d", []), ("e", [])])
    model.graph.output.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [2, "n"]))
    onnx.save(model, path)
    with pytest.raises(
        CoverageError, match=r"^operator Det at node '\w+' is not supported: .*NonZero \(1\)$"
    ) as caught:
        import_onnx(path)
    assert isinstance(caught.value, UnsupportedOpError)
    assert [(r.op, r.count, r.supported) for r in caught.value.table] == [
        ("Det", 2, False), ("NonZero", 1, False), ("Relu", 1, True),
    ]  # fmt: skip
    assert all(r.advice for r in caught.value.table if not r.supported)


def test_model_functions_are_inlined(tmp_path):
    path = tmp_path / "m.onnx"
    model = _model([helper.make_node("Twice", ["x"], ["y"], domain="own")], [("x", [3])], [("y", [3])])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert torch.equal(import_onnx(path).module(torch.ones(3)), torch.full((3,), 2.0))


def test_onnxruntime_agrees_on_a_transformer_block(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu").eval()
    x = torch.randn(1, 6, 32)
    path = tmp_path / "t.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, (x,), path, dynamo=True, external_data=False, verbose=False)
    imported = import_onnx(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {imported.inputs[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(imported.module(x).numpy(), expected, atol=1e-5)
    kinds = [type(m) for m in imported.module.modules()]
    assert kinds.count(nn.Linear) >= 3
    assert kinds.count(nn.LayerNorm) == 2
