"""`prune: {latency: ...}`: files are made and timed on this host until the budget is met."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

WIDE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)
    )
"""


@needs_training
@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs onnxruntime")
def test_a_budget_of_latency(fresh_edgeopt, tmp_path):
    folder = make_folder(tmp_path / "patterns")
    (folder / "net.py").write_text(WIDE)
    stages = [{"prune": {"latency": 0.7, "latency_tries": 3}}]
    recipe = write_recipe(folder, stages=stages, export=EXPORT)
    ran = fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--json", "--jobs", "1")
    assert ran.code == 0, ran.err
    pruned = ran.json["stages"][1]["pruned"]
    told = pruned["latency"]
    assert told["budget"] == 0.7 and told["measured"] <= 0.7 and told["format"] == "onnx" and told["threads"] == 1
    assert told["tried"][-1]["again"] and told["tried"][-1]["latency"] == told["measured"]
    assert all(t["pairs"] >= 5 for t in told["tried"]) and len(told["tried"]) <= 6
    assert pruned["after"]["macs"] < pruned["before"]["macs"]
    assert fresh_edgeopt.leftovers() == []
