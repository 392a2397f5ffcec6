"""Sound files of every kind, small, from which the hostile ones are made."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

ARCH = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def build():
    return Net()
"""
SHAPE = (1, 1, 8, 8)
KERAS = """
import sys
import keras

image = keras.layers.Input((8, 8, 1), name="image")
x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(image))
model = keras.Model(image, keras.layers.Dense(2)(x))
model.save(sys.argv[1] + "/real.keras")
model.save(sys.argv[1] + "/real.h5")
"""


def build(folder: Path) -> dict[str, Path]:
    """Write the seeds that cost little; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arch.py").write_text(ARCH)
    torch.manual_seed(0)
    namespace: dict = {}
    exec(compile(ARCH, "arch.py", "exec"), namespace)
    net = namespace["build"]().eval()
    weights = net.state_dict()
    torch.save(weights, folder / "net.pt")
    torch.save({"epoch": 3, "model_state_dict": weights}, folder / "net.pth", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "net.safetensors")
    torch.export.save(torch.export.export(net, (torch.rand(*SHAPE),)), folder / "net.pt2")
    onnx.save(small_onnx({name: tensor.numpy() for name, tensor in weights.items()}), folder / "net.onnx")
    _keras_files(folder)
    _data(folder)
    return {p.name: p for p in folder.iterdir()}


def build_with_converters(folder: Path) -> dict[str, Path]:
    """Write the seeds that TensorFlow and the converters make; returns them by name."""
    subprocess.run([sys.executable, "-c", KERAS, str(folder)], check=True, capture_output=True)
    out = folder / "bundle"
    command = [str(Path(sys.executable).with_name("edgeopt")), "convert", str(folder / "net.onnx"), "-o", str(out)]
    subprocess.run([*command, "-q", "--samples", "1", "--no-speed", "--no-cache"], check=True, capture_output=True)
    names = {"net.tflite": "*.tflite", "net.pte": "*.pte", "net.mlpackage": "*.mlpackage", "manifest.json": "manifest*"}
    found = {name: next(out.glob(pattern)) for name, pattern in names.items()}
    return {"real.keras": folder / "real.keras", "real.h5": folder / "real.h5"} | found


def small_onnx(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head.weight", "head.bias"], ["y"], transB=1, name="head"),
    ]
    return model(nodes, [numpy_helper.from_array(a, n) for n, a in weights.items()], rank=2)


def value(name: str, rank: int = 4) -> onnx.ValueInfoProto:
    """Return the declaration of a float tensor of that rank."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(rank)])


def model(nodes: list, constants: list = (), functions: list = (), rank: int = 4) -> onnx.ModelProto:
    """Return a model of an image `x` and an output `y`."""
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
        [value("y", rank)],
        list(constants),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def configuration(*layers: dict) -> dict:
    """Return what a Keras file says of a sequential model."""
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": list(layers)}}


def layer(name: str, module: str | None = "keras.layers", **config: object) -> dict:
    return {"module": module, "class_name": name, "config": {"name": "layer", **config}, "registered_name": None}


def keras_archive(path: Path, config: object = None, **members: bytes) -> Path:
    """Write a `.keras` file with that configuration and those further members."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 2), np.float32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config or configuration(layer("Dense", units=2))))
        archive.writestr("model.weights.h5", weights.getvalue())
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def keras_hdf5(path: Path, config: object = None) -> Path:
    """Write an `.h5` file with that configuration."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config or configuration(layer("Dense", units=2)))
        file["model_weights/dense/kernel:0"] = np.ones((2, 2), np.float32)
    return path


def _keras_files(folder: Path) -> None:
    keras_archive(folder / "net.keras")
    keras_hdf5(folder / "net.h5")


def _data(folder: Path) -> None:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (24, 20, 3), np.uint8)
    for suffix in ("png", "jpg", "tiff", "webp", "bmp"):
        (folder / f"image.{suffix}").write_bytes(cv2.imencode(f".{suffix}", pixels)[1].tobytes())
    (folder / "table.csv").write_text("path,label\n" + "image.png,0\nimage.jpg,1\n" * 4)
    (folder / "table.jsonl").write_text('{"path": "image.png", "label": 0}\n{"path": "image.jpg", "label": 1}\n' * 4)
    np.savez(folder / "data.npz", x=chance.random((4, 3, 8, 8), np.float32), y=np.arange(4))
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(3):
            archive.write(folder / "image.png", f"{index}/a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    coco = {
        "images": [{"id": 1, "file_name": "image.png", "height": 24, "width": 20}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "boxes.json").write_text(json.dumps(coco))
    (folder / "card.yaml").write_text("source: arch.py:build\ninputs: [{name: x, shape: [1, 1, 8, 8]}]\n")
    (folder / "recipe.yaml").write_text("model: card.yaml\nstages:\n  - quantize: {precision: static_wi8_ai8}\n")
