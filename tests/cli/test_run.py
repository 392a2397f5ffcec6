"""`edgeopt run`, `init` and `cache`, as users meet them: plans, refusals, a whole recipe, runs that were killed."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import yaml
from recipe_folder import STAGES, make_folder, needs_training, write_recipe

from edgeopt.core.errors import UsageError
from edgeopt.core.recipe import read_recipe


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "patterns")


@needs_training
def test_a_recipe_gives_a_bundle_with_metrics_and_a_record(fresh_edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, export={"formats": ["onnx"], "samples": 60})
    out = tmp_path / "out"
    ran = fresh_edgeopt("run", recipe, "-o", out, "--json", "--jobs", "1")
    assert ran.code == 0, ran.err
    document = ran.json
    assert document == json.loads((out / "manifest.json").read_bytes())
    assert [s["stage"] for s in document["stages"]] == ["original", "prune", "distill"]
    before, pruned, distilled = document["stages"]
    assert pruned["counts"]["macs"] < before["counts"]["macs"] and pruned["pruned"]["channels"]
    assert distilled["training"]["steps"] == 60 and not distilled["cached"]
    assert distilled["evaluation"]["top1"] > max(0.6, before["evaluation"]["top1"])
    assert distilled["changed"]["count"] >= len(distilled["changed"]["samples"]) > 0
    (artifact,) = document["artifacts"]
    assert artifact["format"] == "onnx" and artifact["precision"] == "static_wi8_ai8" and artifact["parity"]["passed"]
    metrics = artifact["metrics"]
    assert metrics["samples"] == 60 and metrics["top1"] == artifact["parity"]["top1"]
    assert metrics["original_top1"] == pytest.approx(before["evaluation"]["top1"], abs=1e-5)
    assert metrics["drop"] == pytest.approx(metrics["original_top1"] - metrics["top1"], abs=1e-5)
    gain = artifact["against_original"]
    assert (gain["format"], gain["precision"]) == ("onnx", "fp32") and gain["times_as_fast"] > 0
    assert gain["times_smaller"] == pytest.approx(gain["size_bytes"] / artifact["size_bytes"], abs=1e-3)
    assert gain["size_bytes"] > 4 * before["counts"]["params"] * 0.95, "the original's weights in float32"
    assert fresh_edgeopt("report", out).code == 0
    told = fresh_edgeopt("report", out, "--format", "terminal").out
    assert f"onnx/static_wi8_ai8: {gain['times_smaller']:.1f} times smaller" in told
    assert "times smaller and" in (out / "report.html").read_text()
    record = json.loads((out / "run.json").read_bytes())
    assert record["artifacts"][0]["against_original"] == gain
    assert record["recipe"]["stages"][0]["prune"]["ratio"] == 0.25 and record["versions"]["torch"]
    assert set(record["per_class"]["classes"]) == {"a", "b", "c", "d", "e"}
    assert record["data"]["train"]["samples"] == 200 and len(record["data"]["eval"]["fingerprint"]) == 64
    assert document["model"]["file"] == "patterns.pt2" and (out / "patterns.pt2").exists()
    assert fresh_edgeopt.leftovers() == []

    listed = fresh_edgeopt("cache", "list", "--json").json["entries"]
    assert {"original", "prune", "distill"} <= {e["stage"] for e in listed}
    assert "freed" in fresh_edgeopt("cache", "clear").out
    assert fresh_edgeopt("cache", "list", "--json").json["entries"] == []


def _checkpointed(cache):
    return any((cache / "training").glob("*/checkpoint.pt"))


@needs_training
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0 prune", "1 distill", "onnx static_wi8_ai8"])
def test_a_killed_run_goes_on_to_the_same_end(fresh_edgeopt, folder, tmp_path, no_orphans, stage):
    changed = [*STAGES]
    changed[1] = {"distill": STAGES[1]["distill"] | {"steps": 400}}
    recipe = write_recipe(folder, stages=changed)
    arguments = ["run", recipe, "--json", "--jobs", "1"]
    whole = fresh_edgeopt(*arguments, "-o", tmp_path / "whole", "--no-cache", timeout=400).json
    process, mark = fresh_edgeopt.start(*arguments, "-o", tmp_path / "out")
    cache = tmp_path / "own-cache"
    for line in process.stderr:
        if line.startswith(f"{stage}: "):
            break
    if stage == "1 distill":
        deadline = time.monotonic() + 120
        while not _checkpointed(cache) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _checkpointed(cache)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    no_orphans(mark)
    assert not (tmp_path / "out").exists()
    ran = fresh_edgeopt(*arguments, "-o", tmp_path / "out", timeout=400)
    assert ran.code == 0, ran.err
    again = ran.json
    if stage == "1 distill":
        assert again["stages"][2]["training"]["resumed"] > 0
        assert again["stages"][1]["cached"] and not again["stages"][2]["cached"]
    assert [s["evaluation"] for s in again["stages"]] == [s["evaluation"] for s in whole["stages"]]
    assert [s["weights_sha256"] for s in again["stages"]] == [s["weights_sha256"] for s in whole["stages"]]
    assert [a["metrics"] for a in again["artifacts"]] == [a["metrics"] for a in whole["artifacts"]]
    assert not _checkpointed(cache), "a finished stage leaves no checkpoint"
    third = fresh_edgeopt(*arguments, "-q", "-o", tmp_path / "out", timeout=400).json
    assert all(s["cached"] for s in third["stages"]) and third["artifacts"][0]["cached"]
    assert [s["weights_sha256"] for s in third["stages"]] == [s["weights_sha256"] for s in whole["stages"]]


def test_a_plan_is_printed_and_nothing_done(edgeopt, folder):
    recipe = write_recipe(folder)
    ran = edgeopt("run", recipe, "--dry-run", "--json", "--set", "stages.0.prune.ratio=0.4", "--set", "seed=3")
    assert ran.code == 0 and ran.seconds < 20
    assert ran.json["stages"][0]["prune"]["ratio"] == 0.4 and ran.json["seed"] == 3
    assert ran.json["formats"] == ["onnx"] and ran.json["precisions"] == ["static_wi8_ai8"]
    told = edgeopt("run", recipe, "--dry-run").out
    assert "0 prune: ratio=0.25" in told and "export: onnx in static_wi8_ai8" in told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"stages": [{"quantize": {}}, {"prune": {"macs": 0.5}}]},
            "stage 0 (quantize) comes before prune: a quant",
        ),
        ({"stages": [{"distill": {}}]}, "stage 0 (distill) comes first: the teacher is the model itself"),
        ({"stages": [{"sparsify": {"ratio": 0.5}}, {"finetune": {}}]}, "would fill the zeros: set keep_zeros: true"),
        (
            {"stages": [{"finetune": {"sparsity": {"ratio": 0.5}}}, {"finetune": {}}]},
            "comes after finetune with sparsity and would fill the zeros",
        ),
        ({"stages": [{"finetune": {"sparsity": {"ratoi": 0.5}}}]}, "sparsity.ratoi'; did you mean 'ratio'?"),
        ({"stages": [{"sparsify": {"ratio": 0.5}}, {"prune": {"macs": 0.5}}]}, "(prune) comes after sparsify"),
        ({"stages": [{"prune": {"mac": 0.5}}]}, "unknown option 'stages.0.prune.mac'; did you mean 'macs'?"),
        ({"stages": [{"purne": {"macs": 0.5}}]}, "unknown option 'stages.0.purne'; did you mean 'prune'?"),
        ({"stages": [{"prune": {"macs": 0.5, "ratio": 0.2}}]}, "stages.0.prune: give macs or ratio, not both"),
        ({"stages": [{"prune": {"macs": 0.5}, "finetune": {}}]}, "exactly one key of prune"),
        ({"export": {"formats": ["onx"]}}, "export.formats: no format 'onx'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(folder, changes, reason):
    with pytest.raises(UsageError) as refused:
        read_recipe(write_recipe(folder, **changes))
    assert reason in str(refused.value)


def test_a_refusal_is_one_line_and_usage(edgeopt, folder):
    ran = edgeopt("run", write_recipe(folder, stages=[{"quantize": {"precision": "static_wi8"}}]), "--dry-run")
    assert ran.code == 2 and "static_wi8" in ran.error


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("stages.0.prune.macs", "expected a place and a value"),
        ("stages.7.prune.macs=1", "stages has 3 entries, no '7'"),
        ("sed=1", "unknown option 'sed'; did you mean 'seed'?"),
        ("model.x=1", "model holds a value, not options"),
        ("seed=[1", "'[1' is no value"),
    ],
)
def test_changes_that_fit_nowhere(folder, change, reason):
    with pytest.raises(UsageError) as refused:
        read_recipe(write_recipe(folder), (change,))
    assert reason in str(refused.value)


def test_a_missing_recipe_and_missing_data(edgeopt, folder):
    assert "no such file" in edgeopt("run", folder / "none.yaml").error
    card = yaml.safe_load((folder / "card.yaml").read_text())
    del card["data"]
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    ran = edgeopt("run", write_recipe(folder), "--json", "-o", folder / "out")
    assert ran.code == 2 and "needs data to eval on" in ran.error and not (folder / "out").exists()


def test_init_writes_a_recipe_that_runs(edgeopt, folder):
    recipe = folder / "mine.yaml"
    ran = edgeopt("init", folder / "card.yaml", "-o", recipe)
    assert ran.code == 0 and "edgeopt run" in ran.out
    text = recipe.read_text()
    assert text.count("#") > 8 and "model: card.yaml" in text and "train: train.npz" in text
    planned = edgeopt("run", recipe, "--dry-run", "--json").json
    assert [next(iter(s)) for s in planned["stages"]] == ["prune", "distill", "quantize"]
    assert "is there already" in edgeopt("init", folder / "card.yaml", "-o", recipe).error
    assert edgeopt("init", folder / "card.yaml", "-o", recipe, "--force").code == 0
