"""`edgeopt eval`: every artifact answers in its own runtime, per class, per group, against the original."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8 * 36, 3)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).flatten(1))

def build():
    return Net()
"""
CARD = """
source: net.py:build
task: image-classification
inputs: [{name: image, shape: [1, 1, 8, 8]}]
outputs: [logits]
preprocess: {color: gray, scale: 0.00392, mean: [0.5], std: [0.25]}
labels: [cat, dog, owl]
data: {calibration: train.csv, eval: test.csv}
"""
SAMPLES = 60


@pytest.fixture(scope="module")
def place(write_model, tmp_path_factory):
    """A card beside its code, and tables of small grey pictures with a further column."""
    folder = write_model("net", NET).parent
    (folder / "card.yaml").write_text(CARD)
    generator = np.random.default_rng(0)
    for name in ("train", "test"):
        (folder / name).mkdir()
        rows = ["path,label,light"]
        for index in range(SAMPLES):
            cv2.imwrite(str(folder / name / f"{index}.png"), generator.integers(0, 256, (8, 8), np.uint8))
            rows.append(f"{name}/{index}.png,{('cat', 'dog', 'owl')[index % 3]},{'day' if index % 4 else 'night'}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def weights(place):
    """The network's own weights, by which ONNX files are written without a converter."""
    namespace: dict = {}
    exec(compile((place / "net.py").read_text(), "net.py", "exec"), namespace)
    return {name: value.numpy() for name, value in namespace["build"]().state_dict().items()}


def onnx_file(weights, step=0.0):
    """Return the network as ONNX, its weights rounded to multiples of `step`."""
    rounded = {n: np.round(w / step).astype(np.float32) * np.float32(step) if step else w for n, w in weights.items()}
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight", "conv.bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 1, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(value, name) for name, value in rounded.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.fixture(scope="module")
def bundle(make_bundle, weights, place):
    model = {
        "inputs": [{"name": "image", "shape": [1, 1, 8, 8], "dtype": "float32", "layout": "NCHW"}],
        "outputs": [{"name": "logits", "shape": [1, 3], "dtype": "float32"}],
        "preprocess": {"color": "gray", "scale": 0.00392, "mean": [0.5], "std": [0.25]},
        "labels": ["cat", "dog", "owl"],
        "source": str(place / "card.yaml"),
    }
    files = {"onnx/fp32": onnx_file(weights), "onnx/static_wi8_ai8": onnx_file(weights, 0.05), "onnx/fp16": b"broken"}
    return make_bundle("net", files, model=model)


@pytest.fixture(scope="module")
def evaluated(edgeopt, bundle, place):
    ran = edgeopt("eval", bundle, "--data", place / "test.csv", "--json")
    assert ran.code == 1, ran.err  # one file is broken, which loses none of the others
    return ran.json


def test_the_bundle_alone_is_enough(evaluated, bundle):
    assert evaluated == json.loads((bundle / "eval.json").read_text())
    assert evaluated["reference"]["kind"] == "artifact" and evaluated["reference"]["name"].endswith(".fp32.onnx")
    found = {(a["format"], a["precision"]): a for a in evaluated["artifacts"]}
    assert set(found) == {("onnx", "fp32"), ("onnx", "static_wi8_ai8")}
    assert [f["precision"] for f in evaluated["failures"]] == ["fp16"]
    assert {a["runtime"] for a in found.values()} == {"onnxruntime"}
    for entry in found.values():
        metrics, against = entry["metrics"], entry["against"]
        labels = [s["label"] for s in evaluated["samples"]]
        right = [a == b for a, b in zip(entry["answers"], labels, strict=True)]
        assert metrics["samples"] == SAMPLES and metrics["top1"] == pytest.approx(np.mean(right))
        assert np.sum(metrics["confusion"]) == SAMPLES and 0 <= metrics["calibration_error"] <= 1
        before = evaluated["reference"]["answers"]
        assert entry["changed"] == [i for i in range(SAMPLES) if before[i] != entry["answers"][i]]
        drop = np.mean(np.equal(before, labels)) - np.mean(right)
        assert against["drop"] == pytest.approx(drop)
        assert sum(r["samples"] for r in against["per_class"]) == SAMPLES
        assert {(s["column"], s["value"], s["samples"]) for s in entry["slices"]} == {
            ("light", "day", 45),
            ("light", "night", 15),
        }
    assert found["onnx", "fp32"]["against"]["agreement"] == 1
    assert evaluated["samples"][0]["id"].endswith(".png") and "light" in evaluated["samples"][0]["slices"]


def test_coarse_weights_change_answers_and_they_are_shown(evaluated):
    changed = next(a for a in evaluated["artifacts"] if a["precision"].startswith("static"))["changed"]
    assert changed, "the weights are coarse enough to change some answers of a random network"
    picture = evaluated["thumbnails"][str(changed[0])]
    assert picture.startswith("data:image/png;base64,iVBOR")


def test_the_data_that_the_bundle_names_is_found_beside_the_card(edgeopt, bundle):
    ran = edgeopt("eval", bundle, "--only", "fp32", "--samples", "5", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["data"]["source"].endswith("test.csv") and ran.json["data"]["verified"] == 5


def test_one_file_against_the_model_itself(edgeopt, bundle, place):
    ran = edgeopt(
        "eval", next(bundle.glob("*.fp32.onnx")), "--against", place / "card.yaml", "--samples", "20", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["reference"]["kind"] == "model" and ran.json["data"]["verified"] == 20
    (entry,) = ran.json["artifacts"]
    assert entry["against"]["agreement"] == 1 and entry["sha256"]


def test_a_file_from_anywhere_with_a_card(edgeopt, bundle, place, tmp_path):
    (tmp_path / "mine.onnx").write_bytes(next(bundle.glob("*.fp32.onnx")).read_bytes())
    ran = edgeopt("eval", tmp_path / "mine.onnx", "--data", place / "test.csv", "--json")
    assert ran.code == 2 and "give --card" in ran.error
    ran = edgeopt("eval", tmp_path / "mine.onnx", "--card", place / "card.yaml", "--samples", "10")
    assert ran.code == 0, ran.err
    assert "light = " in ran.out and "top-1" in ran.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{bundle}", "--data", "none.csv"], "none.csv"),
        (["{bundle}", "--only", "coreml"], "it holds"),
        (["nowhere"], "no such folder"),
        (["{place}"], "holds no manifest.json"),
        (["{bundle}", "--data", "{place}/card.yaml"], "card.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(edgeopt, bundle, place, arguments, told):
    ran = edgeopt("eval", *(a.format(bundle=bundle, place=place) for a in arguments), "--json")
    assert ran.code in (1, 2) and told in ran.error
