"""Linear attention over images, whose expanded product LiteRT's converter refuses as it stands."""

from __future__ import annotations

import pytest

NET = """
import torch
from torch import nn


class LinearAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Conv2d(8, 17, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        query, key, value = self.project(x).split([1, 8, 8], 1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        return self.out(torch.relu(value) * context.expand_as(value))


def build():
    torch.manual_seed(0)
    return LinearAttention()
"""


def test_an_expanded_operand_of_a_product(edgeopt, tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "net.py").write_text(NET)
    arguments = ["--input-shape", "1,8,4,16", "--to", "litert", "--precision", "fp32", "--json", "-o", tmp_path / "out"]
    ran = edgeopt("convert", f"{tmp_path / 'net.py'}:build", *arguments)
    assert ran.code == 0, ran.error
    assert ran.json["artifacts"][0]["parity"]["snr_db"] > 80
