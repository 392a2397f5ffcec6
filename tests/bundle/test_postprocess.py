"""What a detector's bundle ships to stand behind the artifact: the same objects as edgeopt itself finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt.bench.detections import find, overlaps
from edgeopt.bundle import postprocess
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.model import TensorSpec
from edgeopt.data.letterbox import to_image, window
from edgeopt.tasks.postprocess_files import keep_postprocess

DETECTOR = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 4, stride=4)
        self.register_buffer("boxes", torch.arange(16.0)[None, None] * 3)

    def forward(self, image):
        raw = self.conv(image).flatten(2)
        corner = self.boxes + raw[:, :2]
        boxes = torch.cat([corner, corner + 9 + raw[:, 2:4].abs()], 1)
        return {"boxes": boxes, "scores": torch.sigmoid(raw[:, 4:] * 4)}


def build():
    torch.manual_seed(0)
    return Net()
"""
CARD = """
source: net.py:build
task: object-detection
inputs: [{name: image, shape: [1, 3, 16, 16]}]
outputs: [boxes, scores]
detection: {confidence: 0.3, iou: 0.4}
"""
SPECS = (TensorSpec("boxes", (1, 4, 99)), TensorSpec("scores", (1, 3, 99)))


def _crowd(seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    corner = chance.integers(0, 60, (2, 300))
    boxes = np.concatenate([corner, corner + chance.integers(1, 40, (2, 300))]).astype(np.float32)
    return {"boxes": boxes, "scores": (chance.permutation(900) / 900).reshape(3, 300).astype(np.float32)}


def _same(found: dict[str, np.ndarray], expected) -> None:
    for name in ("boxes", "scores", "classes", "anchors"):
        assert np.array_equal(found[name], getattr(expected, name)), name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changed", [{}, {"iou": 0.2}, {"class_agnostic": True}, {"max_detections": 7}])
def test_the_shipped_code_finds_what_edgeopt_finds(seed, changed):
    options = DetectionOptions(**{"confidence": 0.5, "iou": 0.45} | changed)
    outputs = _crowd(seed)
    _same(postprocess.detect(outputs, **options.model_dump()), find(outputs, options))
    rows = np.concatenate([outputs["boxes"], outputs["scores"][:1], outputs["scores"][1:2] > 0.5]).T.astype(np.float32)
    _same(postprocess.detect({"detections": rows}, **options.model_dump()), find({"detections": rows}, options))


def test_boxes_come_back_to_the_image():
    boxes = np.array([[0, 0, 64, 64], [10, 20, 30, 40], [-5, 0, 90, 12]], np.float32)
    for size in ((48, 64), (100, 31), (7, 900)):
        expected = to_image(boxes, window(size, (64, 96)), size)
        assert np.allclose(postprocess.to_image(boxes, size, (64, 96)), expected, atol=1e-4)


def test_masks_and_keypoints_of_what_was_found():
    prototypes = np.stack([np.ones((4, 4)), np.tri(4)]).astype(np.float32)
    outputs = {
        "boxes": np.array([[0, 0, 16, 16], [4, 4, 8, 12]], np.float32).T,
        "scores": np.array([[0.9, 0.8]], np.float32),
        "masks": np.array([[1, -0.5], [0, 1]], np.float32).T,
        "prototypes": prototypes,
        "keypoints": np.arange(12, dtype=np.float32).reshape(6, 2),
    }
    found = postprocess.detect(outputs, iou=0.9)
    covered = postprocess.masks(outputs, found, (16, 16))
    assert covered.shape == (2, 4, 4) and covered[0].all()
    assert covered[1].astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert postprocess.keypoints(outputs, found).tolist() == [[[0, 2, 4], [6, 8, 10]], [[1, 3, 5], [7, 9, 11]]]


@pytest.mark.parametrize("outputs", [SPECS, (TensorSpec("detections", (1, 50, 6)),)])
def test_no_test_vector_hangs_on_rounding(tmp_path, outputs):
    """A port that computes in another precision must not fail on a tie."""
    assert keep_postprocess(outputs, DetectionOptions(), tmp_path) == {
        "code": "postprocess.py",
        "test_vectors": "postprocess_test_vectors.json",
    }
    vectors = json.loads((tmp_path / "postprocess_test_vectors.json").read_text())["vectors"]
    assert len({json.dumps(v["expected"]) for v in vectors}) >= len(vectors) - 1, "each shows something"
    for vector in vectors:
        given, options = vector["outputs"], vector["options"]
        best = np.max(given["scores"], 0) if "scores" in given else np.array(given["detections"])[:, 4]
        assert len(set(best)) == len(best) and np.abs(best - options["confidence"]).min() > 1e-4
        if "boxes" in given:
            boxes = np.array(given["boxes"], np.float32).T
            shares = np.concatenate([overlaps(b, boxes[i + 1 :]) for i, b in enumerate(boxes)])
            assert np.abs(shares - options["iou"]).min() > 1e-3


def test_a_model_that_is_no_detector_gets_none(tmp_path):
    assert keep_postprocess((TensorSpec("logits", (1, 5)),), DetectionOptions(), tmp_path / "x") is None
    assert not (tmp_path / "x").exists()


def test_a_bundle_ships_it_and_it_fits_the_artifact(edgeopt, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx: onnxruntime")
    (tmp_path / "net.py").write_text(DETECTOR)
    (tmp_path / "card.yaml").write_text(CARD)
    out = tmp_path / "out"
    ran = edgeopt("convert", tmp_path / "card.yaml", "--to", "onnx", "--samples", "2", "--no-speed", "-o", out)
    assert ran.code == 0, ran.err
    manifest = json.loads((out / "manifest.json").read_text())
    told = manifest["model"]["postprocess"]
    assert set(told.values()) <= set(manifest["files"])
    command = [sys.executable, "-I", told["code"]]
    checked = subprocess.run(command, cwd=out, capture_output=True, text=True, check=True)
    assert checked.stdout == "7 test vectors agree\n"
    session = ort.InferenceSession(str(next(out.glob("*.onnx"))), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    names = [o.name for o in session.get_outputs()]
    outputs = {n: a[0] for n, a in zip(names, session.run(None, {"image": image}), strict=True)}
    options = manifest["model"]["detection"]
    found = postprocess.detect(outputs, **options)
    assert len(found["anchors"]) > 1
    _same(found, find(outputs, DetectionOptions(**options)))
    vectors = out / told["test_vectors"]
    document = json.loads(vectors.read_text())
    document["vectors"][1]["expected"]["anchors"][0] += 1
    vectors.write_text(json.dumps(document))
    failed = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert failed.returncode and "boxes may overlap less: anchors differ" in failed.stderr
    assert Path(postprocess.__file__).read_text() == (out / told["code"]).read_text()
