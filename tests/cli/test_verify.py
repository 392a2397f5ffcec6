"""`edgeopt verify`: artifacts made by anyone, against a model or against each other."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

torch.set_num_threads(1)

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))

def build():
    return Net()
"""


@pytest.fixture(scope="module")
def net(write_model):
    return write_model("net", NET)


@pytest.fixture(scope="module")
def module(net):
    namespace: dict = {}
    exec(compile(net.read_text(), str(net), "exec"), namespace)
    return namespace["build"]().eval()


@pytest.fixture(scope="module")
def against(net):
    return ["--against", f"{net}:build", "--input-shape", "1,3,8,8", "--samples", "8"]


@pytest.fixture(scope="module")
def foreign(module, tmp_path_factory):
    """An ONNX file of another name, other tensor names and an open batch."""
    path = tmp_path_factory.mktemp("foreign") / "from.elsewhere.onnx"
    batch = torch.export.Dim("batch", min=1, max=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecations
        torch.onnx.export(
            module,
            (torch.rand(2, 3, 8, 8),),
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["input.1"],
            output_names=["/head/Gemm_output_0"],
            dynamic_shapes=({0: batch},),
        )
    return path


def test_other_names_and_an_open_batch(edgeopt, foreign, against):
    ran = edgeopt("verify", foreign, *against, "--json")
    assert ran.code == 0, ran.err
    parity = ran.json["parity"]
    assert parity["passed"] and parity["snr_db"] >= 100 and parity["samples"] == 8 and parity["agreement"] == 1
    assert parity["runtime"] == "onnxruntime" and parity["inputs"] == "random"


def test_a_file_against_a_file_with_names_that_are_paths(edgeopt, foreign, tmp_path):
    ran = edgeopt("verify", foreign, "--against", foreign, "--samples", "3", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["passed"] and ran.json["parity"]["snr_db"] == 300


def test_another_models_file_fails_with_exit_code_1(edgeopt, foreign, against, tmp_path):
    model = onnx.load(foreign)
    for constant in model.graph.initializer:
        if constant.dims == [5]:
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) + 1, constant.name))
    onnx.save(model, tmp_path / "changed.onnx")
    ran = edgeopt("verify", tmp_path / "changed.onnx", *against, "--json")
    assert ran.code == 1 and not ran.json["parity"]["passed"] and "SNR of output is" in ran.json["parity"]["reason"]
    ran = edgeopt("verify", tmp_path / "changed.onnx", *against, "--min-snr", "-100", "--min-agreement", "0")
    assert ran.code == 0 and "passed" in ran.out


def test_a_shape_that_does_not_fit_is_one_line(edgeopt, net, foreign):
    ran = edgeopt("verify", foreign, "--against", f"{net}:build", "--input-shape", "1,3,9,9", "--json")
    assert ran.code == 1 and "has shape" in ran.error and ran.json["exit_code"] == 1


def hostile(path, name, output="y"):
    """A sound ONNX file whose tensors are named like files elsewhere."""
    graph = helper.make_graph(
        [helper.make_node("Relu", [name], [output])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, 3))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize("shape", ["absolute", "relative", "long"])
def test_names_of_tensors_are_never_paths(edgeopt, tmp_path, place, shape):
    target = tmp_path / "victim"
    name = {"absolute": str(target), "relative": f"../../../../../../../../..{target}", "long": "n" * 400}[shape]
    path = hostile(tmp_path / "x.onnx", *((name,) if place == "input" else ("x", name)))
    ran = edgeopt("verify", path, "--against", path, "--samples", "2", "--json")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx"]


def test_converting_a_file_whose_tensors_are_named_like_paths(edgeopt, tmp_path):
    path = hostile(tmp_path / "x.onnx", "../../in put:0", str(tmp_path / "victim"))
    ran = edgeopt("convert", path, "--to", "onnx", "--samples", "2", "--json", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.onnx"]


LITERT = """
import sys, warnings
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
import litert_torch, net
from ai_edge_quantizer import quantizer, recipe
out = sys.argv[2]
litert_torch.convert(net.build().eval(), (torch.rand(1, 3, 8, 8),)).export(f"{out}/float.tflite")
performer = quantizer.Quantizer(f"{out}/float.tflite", recipe.static_wi8_ai8())
generator = np.random.default_rng(0)
name = "args_0"
data = [{name: generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(30)]
performer.quantize(performer.calibrate({"serving_default": data})).export_model(f"{out}/int8.tflite", overwrite=True)
"""


def test_a_tflite_file_with_int8_inputs_and_outputs_made_by_its_own_tool(edgeopt, net, against, tmp_path):
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LITERT, str(net.parent), str(tmp_path)], check=True, capture_output=True
    )
    ran = edgeopt("verify", tmp_path / "int8.tflite", *against, "--precision", "static_wi8_ai8", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["parity"]["passed"] and 15 < ran.json["parity"]["snr_db"] < 60
    ran = edgeopt("verify", tmp_path / "float.tflite", *against, "--json")
    assert ran.code == 0 and ran.json["parity"]["snr_db"] >= 100


@pytest.mark.parametrize("suffix", [".onnx", *(pytest.param(s, marks=pytest.mark.slow) for s in (".tflite", ".pte"))])
def test_a_damaged_artifact_is_one_line(edgeopt, against, tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(3000))
    ran = edgeopt("verify", path, *against, "--json")
    assert ran.code == 1 and "broken" in ran.error and "Traceback" not in ran.error
    assert ran.json["error"] == ran.error
