"""`edgeopt run` on models that come as files of other frameworks, and with a teacher that is another model."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import yaml
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

DISTILL = {"steps": 80, "batch_size": 20, "learning_rate": 0.01, "label_share": 0.9}
STAGES = [{"prune": {"ratio": 0.25, "round_to": 4}}, {"distill": DISTILL}]
TEACHER = """
import numpy as np
import torch
from torch import nn

def build():
    known = np.random.default_rng(0).standard_normal((5, 1, 8, 8))  # what the data are made of
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False))
    net[1].weight = nn.Parameter(torch.tensor(known.reshape(5, 64), dtype=torch.float32) / 8)
    return net
"""
KERAS = """
import sys
import keras
from keras import layers

keras.utils.set_random_seed(0)
image = keras.Input((8, 8, 1), name="image")
x = image
for width, stride in ((16, 1), (32, 2)):
    x = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
net = keras.Model(image, layers.Dense(5, name="scores")(layers.GlobalAveragePooling2D()(x)))
net.save(sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "patterns")


def card_of(folder, name, **changes):
    card = yaml.safe_load((folder / "card.yaml").read_text()) | changes
    (folder / name).write_text(yaml.safe_dump(card))
    return name


def check(ran):
    assert ran.code == 0, ran.err
    before, pruned, distilled = ran.json["stages"]
    assert pruned["counts"]["macs"] < before["counts"]["macs"] and pruned["pruned"]["channels"]
    assert distilled["evaluation"]["top1"] > max(0.6, before["evaluation"]["top1"])
    (artifact,) = ran.json["artifacts"]
    assert artifact["parity"]["passed"] and artifact["metrics"]["top1"] > 0.6


@needs_training
@pytest.mark.slow
@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs onnxruntime")
def test_an_onnx_model_is_pruned_and_distilled(fresh_edgeopt, folder, tmp_path):
    made = fresh_edgeopt("convert", folder / "card.yaml", "--to", "onnx", "-o", tmp_path / "made", "--json")
    assert made.code == 0, made.err
    (tmp_path / "made" / made.json["artifacts"][0]["path"]).rename(folder / "net.onnx")
    recipe = write_recipe(folder, model=card_of(folder, "onnx.yaml", source="net.onnx"), stages=STAGES)
    check(fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--json", "--jobs", "1"))


@needs_training
@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("tensorflow") and find_spec("tf2onnx")), reason="needs tensorflow and tf2onnx")
def test_a_keras_model_is_pruned_and_distilled(fresh_edgeopt, folder, tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", KERAS, str(folder / "net.keras")]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    for name in ("train", "test"):
        data = np.load(folder / f"{name}.npz")
        np.savez(folder / f"{name}.npz", image=data["image"].transpose(0, 2, 3, 1), label=data["label"])
    inputs = [{"name": "image", "shape": [1, 8, 8, 1], "layout": "NHWC"}]
    card = card_of(folder, "keras.yaml", source="net.keras", inputs=inputs, preprocess={"layout": "NHWC"})
    recipe = write_recipe(folder, model=card, stages=STAGES)
    check(fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--json", "--jobs", "1", timeout=500))


@needs_training
def test_a_teacher_that_is_another_model(fresh_edgeopt, folder, tmp_path):
    (folder / "teacher.py").write_text(TEACHER)
    teacher = card_of(folder, "teacher.yaml", source="teacher.py:build")
    stages = [{"distill": DISTILL | {"label_share": 0.0, "temperature": 2.0, "teacher": teacher}}]
    recipe = write_recipe(folder, stages=stages, export=EXPORT)
    ran = fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--json", "--jobs", "1")
    assert ran.code == 0, ran.err
    before, after = (s["evaluation"]["top1"] for s in ran.json["stages"])
    assert after > max(0.6, before + 0.2), "no label was learned from: what it knows is the teacher's"
