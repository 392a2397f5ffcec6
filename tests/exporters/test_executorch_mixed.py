"""Sums and concatenations of integers and floats: in front of a layer in float, and in transformers' residuals."""

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


RESIDUAL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.narrow.weight[3] *= 40  # one channel far larger than the rest: it is levelled

    def forward(self, x):
        return self.head(self.norm(x + self.narrow(nn.functional.gelu(self.wide(self.norm(x))))))


def build():
    torch.manual_seed(0)
    return Block()
"""


def converted(edgeopt, folder, net, shape, *options):
    """Return the record of a network's ExecuTorch program in static int8."""
    pytest.importorskip("executorch")
    (folder / "net.py").write_text(net)
    card = {"source": "net.py:build", "inputs": [{"name": "x", "shape": [1, *shape]}], "outputs": ["y"]}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32))
    arguments = ["--data", folder / "data.npz", "--to", "executorch", "--precision", "static_wi8_ai8", *options]
    ran = edgeopt("convert", folder / "card.yaml", *arguments, "--samples", "4", "--json", "-o", folder / "out")
    assert ran.code == 0, ran.error
    (artifact,) = ran.json["artifacts"]
    return artifact


def test_a_sum_and_a_concatenation_in_front_of_a_layer_in_float(edgeopt, tmp_path):
    artifact = converted(edgeopt, tmp_path, NET, (3, 12, 12), "--keep-float", "kept.0")
    assert artifact["parity"]["snr_db"] > 25 and artifact["integer_ops"] > 0


def test_a_layer_that_only_a_float_sum_reads_stays_in_integers(edgeopt, tmp_path):
    artifact = converted(edgeopt, tmp_path, RESIDUAL, (7, 16))
    assert artifact["parity"]["snr_db"] > 25 and artifact["integer_ops"] >= 3
