"""`edgeopt run --devices`: several processes train one network together."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

DISTILL = {"steps": 60, "batch_size": 20, "learning_rate": 0.01, "label_share": 0.9, "ema": 0.9, "checkpoint_every": 10}
STAGES = [{"prune": {"ratio": 0.25, "round_to": 4, "importance": "taylor"}}, {"distill": DISTILL}]

pytestmark = needs_training


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "patterns")


@pytest.mark.slow
def test_two_processes_train_one_network(fresh_edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, stages=STAGES, export=EXPORT)
    command = ["run", recipe, "-o", tmp_path / "out", "--devices", "2", "--json", "--jobs", "2"]
    ran = fresh_edgeopt(*command)
    assert ran.code == 0, ran.err
    before, _, after = (s["evaluation"]["top1"] for s in ran.json["stages"])
    assert after > max(0.6, before + 0.2)
    assert ran.json["stages"][-1]["training"]["steps"] == 60
    assert json.loads((tmp_path / "out" / "run.json").read_text())["devices"] == 2
    again = fresh_edgeopt(*command, "--force")
    weights = [[s["weights_sha256"] for s in r.json["stages"]] for r in (ran, again)]
    assert weights[0] == weights[1], "the same seed gives the same weights"


@pytest.mark.slow
def test_two_machines_train_one_network(fresh_edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, stages=STAGES, export=EXPORT)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{found.getsockname()[1]}"

    def machine(rank):
        alone = fresh_edgeopt.with_environment(EDGEOPT_CACHE=str(tmp_path / f"cache-{rank}"))
        command = ["run", recipe, "-o", tmp_path / f"out-{rank}", "--nodes", "2", "--node-rank", str(rank)]
        return alone(*command, "--rendezvous", meeting, "--json", "--jobs", "1")

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(machine, range(2))
    assert first.code == 0 and second.code == 0, first.err + second.err
    before, _, after = (s["evaluation"]["top1"] for s in first.json["stages"])
    assert after > max(0.6, before + 0.2)
    for mine, other in zip(first.json["stages"], second.json["stages"], strict=True):
        assert mine["weights_sha256"] == other["weights_sha256"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nodes", "2"], "needs --rendezvous HOST:PORT"),
        (["--nodes", "2", "--rendezvous", "here"], "needs --rendezvous HOST:PORT"),
        (["--nodes", "2", "--rendezvous", "here:1", "--node-rank", "2"], "have the numbers 0 to 1"),
        (["--rendezvous", "here:1"], "give --nodes too"),
    ],
)
def test_machines_that_cannot_meet_are_refused(edgeopt, folder, tmp_path, options, told):
    recipe = write_recipe(folder, stages=STAGES, export=EXPORT)
    ran = edgeopt("run", recipe, "-o", tmp_path / "out", *options)
    assert ran.code == 2 and told in ran.err
    assert not (tmp_path / "out").exists()


def test_a_batch_too_small_to_share_is_refused(fresh_edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, stages=[STAGES[0], {"distill": DISTILL | {"batch_size": 2}}], export=EXPORT)
    ran = fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--devices", "3", "--jobs", "1")
    assert ran.code == 2 and "a batch of 2 samples cannot be shared by 3 devices" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_that_diverges_everywhere_is_one_line(fresh_edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, stages=[{"finetune": {"steps": 40, "batch_size": 20, "learning_rate": 1e30}}])
    ran = fresh_edgeopt("run", recipe, "-o", tmp_path / "out", "--devices", "2", "--jobs", "2")
    assert ran.code == 1 and "training diverged at step" in ran.err and "Traceback" not in ran.err
