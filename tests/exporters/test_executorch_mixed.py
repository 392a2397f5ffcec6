"""A layer in float behind a concatenation of what others read as integers, as in YOLO's blocks."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

NET = """
import torch
from torch import nn


def unit(inputs, outputs, kernel):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.SiLU())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = unit(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.first, self.second = unit(8, 8, 3), unit(8, 8, 3)
        self.kept = unit(24, 16, 1)

    def forward(self, x):
        parts = list(self.stem(x).chunk(2, 1))
        parts.append(parts[-1] + self.second(self.first(parts[-1])))
        return self.head(self.kept(torch.cat(parts, 1)))


def build():
    torch.manual_seed(0)
    return Block()
"""


def test_a_sum_and_a_concatenation_in_front_of_a_layer_in_float(edgeopt, tmp_path):
    pytest.importorskip("executorch")
    (tmp_path / "net.py").write_text(NET)
    card = {"source": "net.py:build", "inputs": [{"name": "x", "shape": [1, 3, 12, 12]}], "outputs": ["y"]}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32))
    arguments = ["--data", tmp_path / "data.npz", "--to", "executorch", "--precision", "static_wi8_ai8"]
    arguments += ["--samples", "4", "--keep-float", "kept.0", "--json", "-o", tmp_path / "out"]
    ran = edgeopt("convert", tmp_path / "card.yaml", *arguments)
    assert ran.code == 0, ran.error
    (artifact,) = ran.json["artifacts"]
    assert artifact["parity"]["snr_db"] > 25 and artifact["integer_ops"] > 0
