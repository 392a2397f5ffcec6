"""A small model with card and data, and recipes for it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import yaml

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        return self.head(self.deep(self.stem(image)).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""
STAGES = [
    {"prune": {"ratio": 0.25, "round_to": 4}},
    {"distill": {"steps": 60, "batch_size": 20, "learning_rate": 0.01, "label_share": 0.9, "checkpoint_every": 10}},
    {"quantize": {"precision": "static_wi8_ai8", "calibration_samples": 40}},
]
EXPORT = {"formats": ["onnx"], "samples": 60, "compare_speed": False}
needs_training = pytest.mark.skipif(
    not (find_spec("lightning") and find_spec("torch_pruning")), reason="needs lightning and torch-pruning"
)


def write_recipe(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": "card.yaml", "stages": STAGES, "export": EXPORT} | changes))
    return path


def make_folder(folder):
    """A model with card and data of five noisy patterns."""
    folder.mkdir()
    (folder / "net.py").write_text(f"import torch\nfrom torch import nn\n{NET}")
    draw = np.random.default_rng(0)
    known = draw.standard_normal((5, 1, 8, 8))
    for name, count in (("train", 200), ("test", 60)):
        labels = draw.integers(0, 5, count)
        images = known[labels] + 0.5 * draw.standard_normal((count, 1, 8, 8))
        np.savez(folder / f"{name}.npz", image=images.astype(np.float32), label=labels)
    card = {
        "source": "net.py:build",
        "task": "image-classification",
        "inputs": [{"name": "image", "shape": [1, 1, 8, 8]}],
        "labels": ["a", "b", "c", "d", "e"],
        "data": {"calibration": "train.npz", "eval": "test.npz"},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder
