"""`edgeopt predict`: pictures of what artifacts find, and the same as data; mAP of a detector in the bundle."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

DETECTOR = """
class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("corners", torch.tensor([[[16.0, 0.0], [16.0, 0.0], [48.0, 8.0], [48.0, 8.0]]]))
        self.register_buffer("bias", torch.tensor([[[0.2, 0.0], [0.0, 0.03]]]))

    def forward(self, image):
        bright = image[:, :, 24:40, 24:40].mean((1, 2, 3)).reshape(-1, 1, 1)
        return self.corners + 0 * bright, self.bias + bright * self.bias * 3


def build():
    return Detector()
"""
DETECTOR_CARD = """
source: model.py:build
task: object-detection
inputs: [{name: image, shape: [1, 3, 64, 64], layout: NCHW}]
outputs: [boxes, scores]
preprocess: {letterbox: 64, scale: 0.00392156862745098}
labels: [square, circle]
"""
CLASSIFIER = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
"""
CLASSIFIER_CARD = """
source: model.py:build
task: image-classification
inputs: [{name: image, shape: [1, 3, 32, 32], layout: NCHW}]
preprocess: {resize: [32, 32], scale: 0.00392156862745098}
labels: [a, b, c, d, e, f, g]
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Grey images of 128 × 64 with a white square in the middle, and their boxes as COCO."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    for index in range(3):
        image = np.full((64, 128, 3), 60, np.uint8)
        image[16:48, 32:96] = 255
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
    images = [{"id": i, "file_name": f"{i}.png", "width": 128, "height": 64} for i in range(3)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [32, 0, 64, 64], "iscrowd": 0} for i in range(3)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "coco.json").write_text(json.dumps(document))
    return folder


def bundle(edgeopt, folder: Path, code: str, card: str, *options: object):
    (folder / "model.py").write_text(f"import torch\nfrom torch import nn\n\n{code}")
    (folder / "card.yaml").write_text(card)
    ran = edgeopt(
        "convert", folder / "card.yaml", "--to", "onnx", *options, "--json", "-q", "-o", folder / "out", timeout=400
    )
    assert ran.code == 0, ran.out + ran.err
    return ran.json


@pytest.fixture(scope="module")
def detector(edgeopt, tmp_path_factory, pictures) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    options = ("--data", pictures / "coco.json") if find_spec("pycocotools") else ()
    bundle(edgeopt, folder, DETECTOR, DETECTOR_CARD, *options)
    return next((folder / "out").glob("*.onnx"))


@pytest.fixture(scope="module")
def classifier(edgeopt, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    bundle(edgeopt, folder, CLASSIFIER, CLASSIFIER_CARD, "--samples", "2")
    return next((folder / "out").glob("*.onnx"))


def test_boxes_in_pixels_of_each_image(edgeopt, detector, pictures, tmp_path):
    ran = edgeopt("predict", detector, pictures / "images", "-o", tmp_path / "out", "--json", "-q")
    assert ran.code == 0, ran.err
    assert [p["image"] for p in ran.json["predictions"]] == ["0.png", "1.png", "2.png"]
    (found,) = ran.json["predictions"][0]["results"][0]["detections"]
    assert found["label"] == "square" and found["score"] == pytest.approx(0.8, abs=0.01)
    assert found["box"] == [32.0, 0.0, 96.0, 64.0]
    picture = cv2.imread(str(tmp_path / "out" / "0.jpg"))
    assert picture.shape == (256, 512, 3)  # small images are enlarged
    assert picture[128, 128:131].max() > 150 and picture[128, 60].max() < 80  # the box's left edge, beside it nothing
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"0.jpg", "1.jpg", "2.jpg"}
    ran = edgeopt(
        "predict", detector, pictures / "images", "--confidence", "0.9", "-o", tmp_path / "out", "--json", "-q"
    )
    assert ran.json["predictions"][0]["results"][0]["detections"] == []


def test_two_artifacts_side_by_side(edgeopt, detector, classifier, pictures, tmp_path):
    ran = edgeopt(
        "predict", classifier, pictures / "images" / "0.png", "--against", detector, "-o", tmp_path / "out", "-q"
    )
    assert ran.code == 0, ran.err
    assert "square 0.80" in ran.out and "pictures:" in ran.out
    assert cv2.imread(str(tmp_path / "out" / "0.jpg")).shape[1] == 2 * 512 + 8


def test_the_five_best_classes(edgeopt, classifier, pictures, tmp_path):
    ran = edgeopt("predict", classifier, pictures / "images" / "0.png", "-o", tmp_path / "out", "--json", "-q")
    classes = ran.json["predictions"][0]["results"][0]["classes"]
    assert len(classes) == 5 and {c["label"] for c in classes} < set("abcdefg")
    assert classes == sorted(classes, key=lambda c: -c["score"]) and 0.5 < sum(c["score"] for c in classes) <= 1


def test_a_video(edgeopt, detector, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 64))
    for index in range(6):
        frame = np.full((64, 128, 3), 60, np.uint8)
        frame[16:48, 32 + index : 96 + index] = 255
        writer.write(frame)
    writer.release()
    ran = edgeopt("predict", detector, tmp_path / "film.avi", "--frames", "4", "-o", tmp_path / "out", "--json", "-q")
    assert ran.code == 0, ran.err
    assert len(ran.json["predictions"]) == 4
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and capture.get(cv2.CAP_PROP_FPS) == 10


@pytest.mark.skipif(find_spec("pycocotools") is None, reason="needs the extra detection: pycocotools")
def test_the_bundle_tells_the_mean_average_precision(detector):
    parity = json.loads((detector.parent / "manifest.json").read_text())["artifacts"][0]["parity"]
    assert parity["metrics"] == parity["reference_metrics"] == {"map50": 1.0, "map50_95": 1.0}


def test_what_cannot_be_looked_at(edgeopt, detector, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    (tmp_path / "broken.mp4").write_bytes(b"ftyp" * 100)
    (tmp_path / "empty").mkdir()
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(detector.read_bytes())
    cases = [
        ((detector, tmp_path / "broken.png"), 1, "the PNG is cut short or damaged"),
        ((detector, tmp_path / "broken.mp4"), 1, "no video that OpenCV reads"),
        ((detector, tmp_path / "empty"), 1, "no images in it"),
        ((detector, tmp_path / "nothing.png"), 1, "nothing.png is missing"),
        ((alone, pictures / "images" / "0.png"), 2, "give --card CARD.yaml"),
        ((pictures / "images" / "0.png", pictures / "images"), 2, "0.png"),
    ]
    for arguments, code, said in cases:
        ran = edgeopt("predict", *arguments, "-o", tmp_path / "out", "-q")
        assert (ran.code, said in ran.error) == (code, True), ran.err
    assert not (tmp_path / "out").exists()
    card = detector.parent.parent / "card.yaml"
    ran = edgeopt("predict", alone, pictures / "images", "--card", card, "-o", tmp_path / "out", "--json", "-q")
    assert ran.code == 0 and ran.json["predictions"][2]["results"][0]["detections"][0]["label"] == "square"
