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
            self.gate.bias.zero_()
            self.gate.weight[0] *= 1e-2

    def forward(self, x):
        small = torch.relu(self.first(x))
        return torch.clamp(self.gate(small) + 3, 0, 6) / 6 * x.mean(1, keepdim=True)


def build():
    torch.manual_seed(0)
    return Gate()
"""


DEAD = """
import torch
from torch import nn


class Dead(nn.Module):
    # Channels of next to no weight, as weight decay leaves them, whose biases the next layer reads all the same.

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        with torch.no_grad():
            for layer in (self.first, self.depthwise):
                layer.weight[1:4] *= {scale}
                layer.bias[1:4] = torch.tensor([0.9, 0.4, -0.7])

    def forward(self, x):
        return self.depthwise(nn.functional.relu6(self.second(nn.functional.relu6(self.first(x)))))


def build():
    torch.manual_seed(0)
    return Dead()
"""


def convert(edgeopt, folder, net):
    pytest.importorskip("ai_edge_litert")
    (folder / "net.py").write_text(net)
    card = {"source": "net.py:build", "inputs": [{"name": "x", "shape": [1, 3, 8, 8]}], "outputs": ["y"]}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    arguments = ["--data", folder / "data.npz", "--to", "litert", "--precision", "static_wi8_ai8", "--samples", "8"]
    ran = edgeopt("convert", folder / "card.yaml", *arguments, "--json", "-o", folder / "out")
    assert ran.code == 0, ran.error
    return ran.json["artifacts"][0]


def test_a_constant_of_billions_of_steps_fits(edgeopt, tmp_path):
    artifact = convert(edgeopt, tmp_path, NET)
    assert artifact["parity"]["snr_db"] > 30
    assert any("biases fit 32 bits" in note for note in artifact["notes"])


@pytest.mark.parametrize("scale", ["0.0", "1e-9", "1e-6"])
def test_channels_of_no_weight_keep_their_bias_and_cost_the_others_nothing(edgeopt, tmp_path, scale):
    artifact = convert(edgeopt, tmp_path, DEAD.replace("{scale}", scale))
    assert artifact["parity"]["snr_db"] > 35
    assert not any("biases fit 32 bits" in note for note in artifact["notes"])
