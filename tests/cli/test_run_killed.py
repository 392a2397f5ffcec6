"""Runs killed in a stage that fine-tunes, cuts depth or sets zeros end as an unbroken one does."""

from __future__ import annotations

import os
import signal
import time

import pytest
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

pytestmark = [needs_training, pytest.mark.slow]
BLOCKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + torch.relu(self.norm(self.convolution(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""
GROWING = {"ratio": 0.5, "importance": "movement", "every": 5}
STAGES = [
    {"cut_depth": {"blocks": 2}},
    {"finetune": {"steps": 400, "batch_size": 20, "checkpoint_every": 10, "sparsity": GROWING}},
    {"sparsify": {"ratio": 0.7}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("killed") / "patterns")
    (folder / "net.py").write_text(BLOCKS)
    write_recipe(folder, stages=STAGES, export=EXPORT)
    return folder


@pytest.fixture(scope="module")
def whole(edgeopt, folder, tmp_path_factory):
    """An unbroken run, which keeps nothing."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ran = edgeopt("run", folder / "recipe.yaml", "--json", "--jobs", "1", "-o", out, "--no-cache", timeout=500)
    assert ran.code == 0, ran.err
    return ran.json


@pytest.mark.parametrize("stage", ["0 cut_depth", "1 finetune", "2 sparsify"])
def test_a_killed_run_goes_on_to_the_same_end(fresh_edgeopt, folder, whole, tmp_path, no_orphans, stage):
    arguments = ["run", folder / "recipe.yaml", "--json", "--jobs", "1", "-o", tmp_path / "out"]
    process, mark = fresh_edgeopt.start(*arguments)
    for line in process.stderr:
        if line.startswith(f"{stage}: "):
            break
    if stage == "1 finetune":
        deadline = time.monotonic() + 120
        kept = tmp_path / "own-cache" / "training"
        while not any(kept.glob("*/checkpoint.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    no_orphans(mark)
    assert not (tmp_path / "out").exists()
    ran = fresh_edgeopt(*arguments, timeout=500)
    assert ran.code == 0, ran.err
    again = ran.json
    number = int(stage[0]) + 1
    assert all(s["cached"] for s in again["stages"][:number])
    if stage == "1 finetune":
        assert again["stages"][number]["training"]["resumed"] > 0 and not again["stages"][number]["cached"]
    for ours, theirs in zip(again["stages"], whole["stages"], strict=True):
        assert ours["evaluation"] == theirs["evaluation"], ours["stage"]
        assert ours["weights_sha256"] == theirs["weights_sha256"], ours["stage"]
    assert [a["metrics"] for a in again["artifacts"]] == [a["metrics"] for a in whole["artifacts"]]
    zeros = [s["sparsified"]["zeros"] for s in again["stages"] if "sparsified" in s]
    assert zeros == pytest.approx([0.5, 0.7], abs=0.01)
