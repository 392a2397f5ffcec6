"""Biases of LiteRT's integer kernels, which are stored in 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

NET = """
import torch
from torch import nn


class Gate(nn.Module):
    # Tiny values, small weights, and a hard sigmoid, whose 3 the converter adds to the bias.


    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.first.weight.mul_(1e-3)
            self.first.bias.zero_()
            self.gate.weight[0] *= 1e-2

    def forward(self, x):
        small = torch.relu(self.first(x))
        return torch.clamp(self.gate(small) + 3, 0, 6) / 6 * x.mean(1, keepdim=True)


def build():
    torch.manual_seed(0)
    return Gate()
"""


def test_a_constant_of_billions_of_steps_fits(edgeopt, tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "net.py").write_text(NET)
    card = {"source": "net.py:build", "inputs": [{"name": "x", "shape": [1, 3, 8, 8]}], "outputs": ["y"]}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    arguments = ["--data", tmp_path / "data.npz", "--to", "litert", "--precision", "static_wi8_ai8", "--samples", "8"]
    ran = edgeopt("convert", tmp_path / "card.yaml", *arguments, "--json", "-o", tmp_path / "out")
    assert ran.code == 0, ran.error
    (artifact,) = ran.json["artifacts"]
    assert artifact["parity"]["snr_db"] > 30
    assert any("biases fit 32 bits" in note for note in artifact["notes"])
