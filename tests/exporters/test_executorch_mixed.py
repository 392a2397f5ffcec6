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


def test_a_layer_that_only_a_float_sum_reads_stays_in_integers(edgeopt, tmp_path):
    pytest.importorskip("executorch")
    (tmp_path / "net.py").write_text(RESIDUAL)
    card = {"source": "net.py:build", "inputs": [{"name": "x", "shape": [1, 7, 16]}], "outputs": ["y"]}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((20, 7, 16)).astype(np.float32))
    arguments = ["--data", tmp_path / "data.npz", "--to", "executorch", "--precision", "static_wi8_ai8"]
    ran = edgeopt("convert", tmp_path / "card.yaml", *arguments, "--samples", "4", "--json", "-o", tmp_path / "out")
    assert ran.code == 0, ran.error
    (artifact,) = ran.json["artifacts"]
    assert artifact["parity"]["snr_db"] > 25 and artifact["integer_ops"] >= 3
