"""`edgeopt run --track mlflow`: what a real local store holds afterwards, and what is refused before any work."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

STAGES = [{"prune": {"ratio": 0.25, "round_to": 4}}, {"finetune": {"steps": 10, "batch_size": 20}}]
needs_mlflow = pytest.mark.skipif(
    not all(find_spec(p) for p in ("mlflow", "sqlalchemy", "alembic")), reason='needs "edgeopt[mlflow]"'
)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "patterns")


@pytest.fixture
def client(tmp_path, monkeypatch):
    """MLflow's client on the store that the runs of a test write to."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        from mlflow.tracking import MlflowClient

        return MlflowClient(f"sqlite:///{tmp_path / 'store.db'}")


@needs_mlflow
@needs_training
def test_a_run_is_logged_and_its_model_registered_with_lineage(fresh_edgeopt, folder, client, tmp_path):
    command = fresh_edgeopt.with_environment(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'store.db'}")
    recipe = write_recipe(folder, stages=STAGES, export=EXPORT)
    out = tmp_path / "out"
    client.create_registered_model("patterns")  # as an earlier run would
    ran = command("run", recipe, "-o", out, "--json", "--jobs", "1", "--track", "mlflow")
    assert ran.code == 0, ran.err
    record = json.loads((out / "run.json").read_bytes())
    experiment = client.get_experiment_by_name("patterns")
    (later,) = client.search_runs([experiment.experiment_id])
    assert f"run {later.info.run_id}, patterns version 1" in ran.err and later.info.status == "FINISHED"
    assert later.data.params["stages.0.prune.ratio"] == "0.25" and later.data.params["seed"] == "0"
    assert later.data.params["export.formats"] == "onnx" and "stages.0.prune.macs" not in later.data.params
    history = client.get_metric_history(later.info.run_id, "top1")
    wanted = [s["evaluation"]["top1"] for s in record["stages"]]
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == wanted and len(wanted) == 3
    (artifact,) = record["artifacts"]
    assert later.data.metrics["onnx/fp32/size_bytes"] == artifact["size_bytes"]
    assert later.data.metrics["onnx/fp32/top1"] == artifact["metrics"]["top1"]
    logged = {f.path for f in client.list_artifacts(later.info.run_id, "bundle")}
    assert {"bundle/run.json", "bundle/manifest.json", f"bundle/{artifact['path']}", "bundle/patterns.pt2"} <= logged
    fetched = client.download_artifacts(later.info.run_id, "bundle/run.json", str(tmp_path))
    assert json.loads(Path(fetched).read_bytes()) == record

    (version,) = client.search_model_versions("name='patterns'")
    assert version.run_id == later.info.run_id and version.source.endswith("/bundle")
    keys = {f"edgeopt.stage.{i}.{s['stage']}": s["key"] for i, s in enumerate(record["stages"])}
    assert len(keys) == 3 and keys.items() <= version.tags.items() and len(set(keys.values())) == 3
    assert version.tags["edgeopt.source"] == record["model"]["source"]
    assert version.tags["edgeopt.source_sha256"] == record["model"]["sha256"]
    assert version.tags["edgeopt.data.train"] == record["data"]["train"]["fingerprint"]
    assert version.tags["edgeopt.weights_sha256"] == record["stages"][-1]["weights_sha256"]
    assert version.tags["edgeopt.artifact.onnx.fp32"] == artifact["sha256"]


def test_without_mlflow_the_extra_is_named_before_any_work(edgeopt, folder, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'mlflow' else find(name, package)\n"
    )
    path = f"{hidden}:{edgeopt.environment.get('PYTHONPATH', '')}"
    command = edgeopt.with_environment(PYTHONPATH=path)
    ran = command("run", write_recipe(folder), "-o", tmp_path / "out", "--track", "mlflow")
    assert ran.code == 2 and ran.error == 'mlflow is not installed: pip install "edgeopt[mlflow]"'
    assert "loading" not in ran.err and not (tmp_path / "out").exists()


@needs_mlflow
def test_a_store_that_does_not_answer_is_told_before_any_work(edgeopt, folder, tmp_path):
    command = edgeopt.with_environment(MLFLOW_TRACKING_URI="nowhere://store")
    ran = command("run", write_recipe(folder), "-o", tmp_path / "out", "--track", "mlflow")
    assert ran.code == 1 and "MLFLOW_TRACKING_URI" in ran.error and "nowhere" in ran.error
    assert "loading" not in ran.err and not (tmp_path / "out").exists()
