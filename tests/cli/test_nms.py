"""`edgeopt convert --nms`: suppression in the file, verified, and used by predict, eval and verify."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

DETECTOR = """
class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)
        nn.init.constant_(self.conv.weight, 0.005)
        side = torch.arange(8.0) * 8
        centre = torch.stack([side.repeat(8), side.repeat_interleave(8)])
        self.register_buffer("corners", torch.cat([centre - 30, centre + 34])[None])
        self.register_buffer("tilt", torch.arange(64.0) / 100)  # no two anchors are equally sure

    def forward(self, image):
        raw = self.conv(image).flatten(2)
        scores = torch.sigmoid(4 * raw[:, 4:] - 3 + self.tilt)
        return self.corners + raw[:, :4], scores, raw[:, :3]


def build():
    torch.manual_seed(0)
    return Detector()
"""
CARD = """
source: model.py:build
task: instance-segmentation
inputs: [{name: image, shape: [1, 3, 64, 64], layout: NCHW}]
outputs: [boxes, scores, extra]
preprocess: {letterbox: 64, scale: 0.00392156862745098}
labels: [square, circle]
detection: {confidence: 0.2, iou: 0.5, max_detections: 20}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A detector, and grey images with a white square in the middle and a box of each class as COCO."""
    folder = tmp_path_factory.mktemp("nms")
    (folder / "model.py").write_text(f"import torch\nfrom torch import nn\n\n{DETECTOR}")
    (folder / "card.yaml").write_text(CARD)
    (folder / "images").mkdir()
    for index in range(3):
        image = np.full((64, 64, 3), 40 + 10 * index, np.uint8)
        image[16:48, 16:48] = 255
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(3)]
    of = {"bbox": [10, 10, 54, 54], "iscrowd": 0}
    boxes = [{"id": 2 * i + k, "image_id": i, "category_id": k} | of for i in range(3) for k in (1, 2)]
    kinds = [{"id": 1, "name": "square"}, {"id": 2, "name": "circle"}]
    document = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "coco.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def bundle(edgeopt, place) -> Path:
    data = ("--data", place / "coco.json") if find_spec("pycocotools") else ()
    for name, options in (("raw", ()), ("out", ("--nms",))):
        options += ("--detection", "iou=0.4", "--no-speed", "-q", "-o", place / name)
        ran = edgeopt("convert", place / "card.yaml", "--to", "onnx", *data, *options)
        assert ran.code == 0, ran.out + ran.err
    return place / "out"


def test_the_manifest_tells_what_is_inside(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"]
    options = {"confidence": 0.2, "iou": 0.4, "max_detections": 20, "class_agnostic": False}
    assert artifact["nms"] == manifest["model"]["detection"] == options
    assert [(s["name"], s["shape"]) for s in artifact["outputs"]] == [("detections", [1, 20, 6]), ("extra", [1, 3, 20])]
    assert [s["name"] for s in manifest["model"]["outputs"]] == ["boxes", "scores", "extra"]
    counts, parity = artifact["parity"]["detections"], artifact["parity"]
    assert parity["passed"] and parity["agreement"] == 1 and parity["snr_db"] > 80
    assert counts["matched"] == counts["original"] > 0
    assert any("non-maximum suppression is in the graph: confidence 0.2, iou 0.4" in n for n in artifact["notes"])
    (raw,) = json.loads((bundle.parent / "raw" / "manifest.json").read_text())["artifacts"]
    assert raw["nms"] is None and len(raw["outputs"]) == 3


def test_predict_finds_the_same_in_both_files(edgeopt, bundle, place, tmp_path):
    inside = next(bundle.glob("*.onnx"))
    behind = next((place / "raw").glob("*.onnx"))
    ran = edgeopt("predict", inside, place / "images", "--against", behind, "-o", tmp_path / "p", "--json", "-q")
    assert ran.code == 0, ran.err
    for prediction in ran.json["predictions"]:
        first, second = (r["detections"] for r in prediction["results"])
        assert first == second and first


@pytest.mark.skipif(find_spec("pycocotools") is None, reason="needs the extra detection: pycocotools")
def test_eval_scores_what_the_file_gives(edgeopt, bundle, place):
    ran = edgeopt("eval", bundle, "--data", place / "coco.json", "--against", place / "card.yaml", "--json", "-q")
    assert ran.code == 0, ran.out + ran.err
    (found,) = ran.json["artifacts"]
    assert found["metrics"]["kind"] == "detection" and found["metrics"]["samples"] == 3
    assert set(found["against"]) == {"map50_drop", "map50_95_drop"}
    assert ran.json["reference"]["metrics"]["map50"] > 0
    ran = edgeopt("eval", bundle, "--data", place / "coco.json", "-q")
    assert ran.code == 0 and "mAP50" in ran.out and "original" in ran.out


def test_verify_knows_what_is_inside(edgeopt, bundle, place):
    artifact = next(bundle.glob("*.onnx"))
    ran = edgeopt("verify", artifact, "--against", place / "card.yaml", "--json", "-q")
    assert ran.code == 0, ran.out + ran.err
    assert ran.json["parity"]["detections"]["matched"] > 0
    ran = edgeopt("verify", artifact, "--against", next((place / "raw").glob("*.onnx")), "--card", place / "card.yaml",
                  "--json", "-q")  # fmt: skip
    assert ran.code == 0 and ran.json["parity"]["passed"], ran.out + ran.err


def test_what_cannot_be_is_said(edgeopt, place, tmp_path):
    options = ("--no-speed", "-q", "-o", tmp_path / "out")
    ran = edgeopt("convert", place / "card.yaml", "--to", "litert,coreml", "--nms", *options)
    assert ran.code == 2 and "only onnx can hold non-maximum suppression; add --to onnx" in ran.error
    ran = edgeopt("convert", place / "card.yaml", "--to", "onnx", "--detection", "iuo=0.3", *options)
    assert ran.code == 2 and "unknown option 'iuo'; did you mean 'iou'?" in ran.error
    ran = edgeopt("convert", place / "card.yaml", "--to", "onnx", "--nms", "--detection", "confidence=1", *options)
    assert ran.code == 1 and "proves nothing" in ran.out
