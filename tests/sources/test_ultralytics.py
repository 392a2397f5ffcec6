"""ultralytics' networks: the same boxes as its own export, from checkpoints and configurations that run no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from edgeopt.core.errors import SourceError, UnsafeFileError, UsageError
from edgeopt.sources.request import understand

needs_ultralytics = pytest.mark.skipif(find_spec("ultralytics") is None, reason="needs the extra yolo: ultralytics")

BUILD = """
import json, os, sys, tempfile
os.environ |= {"YOLO_AUTOINSTALL": "0", "YOLO_OFFLINE": "1", "YOLO_VERBOSE": "0", "YOLO_CONFIG_DIR": tempfile.mkdtemp()}
from pathlib import Path
import torch
from edgeopt.sources.torchvision_ops import import_torchvision
import_torchvision()
import ultralytics
from ultralytics.nn import tasks
out = Path(sys.argv[1])
shipped = Path(ultralytics.__file__).parent / "cfg" / "models"
import yaml
torch.manual_seed(0)


def narrow(path, **changes):
    document = yaml.safe_load((shipped / path).read_text())
    return document | {"nc": 3, "scales": {"n": [0.34, 0.125, 256]}, "scale": "n"} | changes


kinds = {
    "detect": (tasks.DetectionModel, narrow("11/yolo11.yaml")),
    "segment": (tasks.SegmentationModel, narrow("v8/yolov8-seg.yaml")),
    "pose": (tasks.PoseModel, narrow("11/yolo11-pose.yaml", kpt_shape=[5, 3])),
    "classify": (tasks.ClassificationModel, narrow("11/yolo11-cls.yaml")),
    "end2end": (tasks.DetectionModel, narrow("26/yolo26.yaml")),
}
for name, (kind, document) in kinds.items():
    model = kind(document, ch=3, verbose=False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    model.names = {0: "circle", 1: "square", 2: "triangle"}
    model.args = {"imgsz": 64}
    torch.save({"model": model.half(), "epoch": 3, "train_args": {}}, out / f"{name}.pt")
"""

CHECK = """
import json, sys
from pathlib import Path
import torch
from edgeopt.sources.request import understand
from edgeopt.tasks.prepare import load
from edgeopt.sources import from_ultralytics as source
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    model = load(understand(str(path)))
    image = torch.rand(1, 3, 64, 64)
    own, _ = source.tasks.torch_safe_load(str(path), safe_only=True)
    own = own["model"].float().eval()
    if path.stem == "end2end":
        own.model[-1].end2end = False
    with torch.no_grad():
        got = model.module(image)
        expected = own(image)[0]
    got = list(got)
    if path.stem == "segment":
        expected, prototypes = expected
        assert torch.allclose(prototypes, got.pop(), atol=1e-4)
    if path.stem != "classify":
        x, y, w, h = got[0][:, 0:2].add(got[0][:, 2:4]).div(2).unbind(1) + (got[0][:, 2:4] - got[0][:, 0:2]).unbind(1)
        got[0] = torch.stack([x, y, w, h], 1)
    joined = torch.cat(got, 1)
    scale = expected.abs().max()
    found[path.stem] = {"difference": float((joined - expected).abs().max() / scale), "task": model.card.task,
                        "outputs": list(model.card.outputs), "labels": model.card.labels,
                        "letterbox": model.card.preprocess.letterbox}
print(json.dumps(found))
"""


def _python(code: str, *arguments: object) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ultralytics")
    _python(BUILD, out)
    return out


@needs_ultralytics
def test_the_same_outputs_as_ultralytics_itself(checkpoints):
    found = json.loads(_python(CHECK, checkpoints).splitlines()[-1])
    for name, record in found.items():
        assert record["difference"] < 1e-4, (name, record)
        assert record["labels"] == ["circle", "square", "triangle"]
    assert found["detect"]["outputs"] == found["end2end"]["outputs"] == ["boxes", "scores"]
    assert found["segment"]["outputs"] == ["boxes", "scores", "masks", "prototypes"]
    assert found["pose"]["outputs"] == ["boxes", "scores", "keypoints"]
    assert found["classify"]["task"] == "image-classification"
    assert found["detect"]["letterbox"] == [64, 64] and found["classify"]["letterbox"] is None


@needs_ultralytics
def test_configurations_by_file_and_by_name(load, tmp_path):
    found = load("yolo:yolo11n.yaml", shapes=((1, 3, 64, 96),))
    assert found["parameters"] == 2616248 and found["inputs"][0]["shape"] == [1, 3, 64, 96]
    with pytest.raises(UsageError, match="multiples of its stride, 32"):
        load("yolo:yolo11n.yaml", shapes=((1, 3, 65, 96),))
    with pytest.raises(UsageError, match=r"no such file, and ultralytics .* has no yolo99n\.yaml"):
        load("yolo:yolo99n.yaml")
    with pytest.raises(UsageError, match=r"best\.pt: no such file"):
        load("yolo:best.pt")
    with pytest.raises(SourceError, match="not supported; known: detect, segment, pose, classify"):
        load("yolo:yolo11n-obb.yaml", shapes=((1, 3, 64, 64),))


@needs_ultralytics
@pytest.mark.slow
@pytest.mark.parametrize("name", ["detect", "segment", "pose", "classify", "end2end"])
def test_four_formats(edgeopt, checkpoints, tmp_path, name):
    ran = edgeopt("convert", checkpoints / f"{name}.pt", "--json", "-q", "-o", tmp_path / "out", timeout=500)
    assert ran.code == 0, ran.out + ran.err
    assert len(ran.json["artifacts"]) == 4


SCORE = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from shapes import write
from edgeopt.bench.detections import find
from edgeopt.data import open_data
from edgeopt.sources.request import understand
from edgeopt.tasks.detect import EVALUATION, mean_average_precision
from edgeopt.tasks.prepare import load
torch.set_num_threads(1)
model = load(understand(sys.argv[1] + "/card.yaml"))
with tempfile.TemporaryDirectory() as folder:
    write(Path(folder), images=40, seed=7)
    data = open_data(folder + "/annotations.json", model.card, model.inputs, Path())
    samples = [data[i] for i in range(len(data))]
found = []
with torch.no_grad():
    for sample in samples:
        outputs = model.module(torch.from_numpy(sample.inputs["image"])[None])
        found.append(find({n: o[0].numpy() for n, o in zip(model.card.outputs, outputs)}, EVALUATION))
print(json.dumps(mean_average_precision([s.truth for s in samples], found)))
"""


@needs_ultralytics
def test_the_reference_detector_finds_shapes(root):
    if find_spec("pycocotools") is None:
        pytest.skip("needs the extra detection: pycocotools")
    metrics = json.loads(_python(SCORE, root / "models" / "shapes-yolo").splitlines()[-1])
    assert metrics["map50"] >= 0.9


HOSTILE_YAML = {
    "activation": "activation: __import__('os').mkdir('MARKER')\nnc: 1\nbackbone: [[-1, 1, Conv, [8, 3, 2]]]\n"
    "head: [[[0], 1, Detect, [nc]]]\n",
    "argument": "nc: 1\nbackbone: [[-1, 1, Conv, [\"__import__('os').mkdir('MARKER')\", 3, 2]]]\n"
    "head: [[[0], 1, Detect, [nc]]]\n",
    "module": "nc: 1\nbackbone: [[-1, 1, os.mkdir, ['MARKER']]]\nhead: [[[0], 1, Detect, [nc]]]\n",
    "function": "nc: 1\nbackbone: [[-1, 1, attempt_load_weights, ['MARKER']]]\nhead: [[[0], 1, Detect, [nc]]]\n",
    "tag": "backbone: !!python/object/apply:os.mkdir ['MARKER']\nhead: []\n",
    "download": "nc: 1\nbackbone: [[-1, 1, TorchVision, [8, resnet18, DEFAULT]]]\nhead: [[[0], 1, Detect, [nc]]]\n",
    "repeats": "nc: 1\nbackbone: [[-1, 1000000000, Conv, [8, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n",
    "nothing": "",
    "list": "[1, 2]\n",
    "no rows": "backbone: 3\nhead: x\n",
    "short rows": "backbone: [[1]]\nhead: [[2]]\n",
    "aliases": "a: &a [x]\nbackbone: *a\nhead: *a\n",
    "binary": "\x00\x01",
}


@needs_ultralytics
@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_a_configuration_runs_no_code(load, tmp_path, name):
    marker = tmp_path / "executed"
    path = tmp_path / "evil.yaml"
    path.write_text(HOSTILE_YAML[name].replace("MARKER", str(marker)))
    with pytest.raises(SourceError, match=r"evil\.yaml"):
        load(f"yolo:{path}", shapes=((1, 3, 64, 64),))
    assert not marker.exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@needs_ultralytics
def test_a_checkpoint_that_runs_code_is_refused(load, tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "evil.pt"
    torch.save({"model": Payload(marker), "note": "ultralytics.nn.tasks"}, path)
    for name in (f"yolo:{path}", path):
        with pytest.raises(UnsafeFileError, match="could run code"):
            load(name)
    assert not marker.exists()


@needs_ultralytics
def test_broken_checkpoints(load, checkpoints, tmp_path):
    whole = (checkpoints / "detect.pt").read_bytes()
    path = tmp_path / "broken.pt"
    for content in (b"", b"PK", b"not a checkpoint", whole[: len(whole) // 2], whole[:-30], whole[1000:]):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"broken\.pt"):
            load(f"yolo:{path}")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    path.write_bytes(bytes(flipped))
    with pytest.raises(SourceError, match="damaged: the checksum"):
        load(f"yolo:{path}")
    torch.save({"model": torch.zeros(3)}, path)
    with pytest.raises(SourceError, match="holds no network of ultralytics"):
        load(f"yolo:{path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside/data.pkl", b"ultralytics.nn")
    with pytest.raises(UnsafeFileError, match="members lie outside"):
        load(f"yolo:{path}")


def test_plain_checkpoints_are_not_taken_for_ultralytics(files, arch):
    assert understand(str(files["net.pt"]), arch=f"{arch}:build").kind == "weights"
    assert understand(str(files["net.pt"])).kind == "weights"
