"""Writes a run's record to MLflow, and registers what came out as a version of a model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from edgeopt.core.errors import TrackingError
from edgeopt.worker import report

Record = dict[str, Any]
BATCH = 100  # entries of a kind that a server takes at once
LONGEST_PARAMETER = 6000
LONGEST_TAG = 5000


def reach() -> Record:
    """Make sure that the store answers; returns its address.

    Raises:
        TrackingError: it does not.
    """
    try:
        client = MlflowClient()
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        raise TrackingError(f"MLflow's store cannot be used (MLFLOW_TRACKING_URI): {_first_line(error)}") from error
    return {"store": client.tracking_uri}


def log_run(*, record: Record, bundle: str, name: str) -> Record:
    """Log a record with its bundle as one run, and register the model.

    The recipe's leaves are parameters (`stages.0.prune.macs`); metrics of stages have the stage's number as their step,
    those of files are called `FORMAT/PRECISION/METRIC`. The version's tags tell its lineage.

    Args:
        record: what `run.json` holds.
        bundle: folder whose files are the run's artifacts.
        name: of the registered model, and of the experiment where MLFLOW_EXPERIMENT_NAME names none.

    Raises:
        TrackingError: the store refused something; the run is then marked as failed.
    """
    client = MlflowClient()
    run_id = None
    try:
        experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or name)
        run = client.create_run(experiment, run_name=Path(bundle).name)
        run_id, now = run.info.run_id, time.time_ns() // 1_000_000
        lineage = _lineage(record)
        parameters = [Param(k, v[:LONGEST_PARAMETER]) for k, v in _leaves("", record["recipe"])]
        for start in range(0, len(parameters), BATCH):
            client.log_batch(run_id, params=parameters[start : start + BATCH])
        metrics = [Metric(key, value, now, step) for key, value, step in _metrics(record)]
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        tags = [RunTag(k, v[:LONGEST_TAG]) for k, v in lineage.items()]
        for start in range(0, len(tags), BATCH):
            client.log_batch(run_id, tags=tags[start : start + BATCH])
        report("storing the bundle")
        client.log_artifacts(run_id, bundle, "bundle")
        report("registering the model")
        version = _register(client, name, f"{run.info.artifact_uri}/bundle", run_id, lineage)
        client.set_terminated(run_id, "FINISHED")
    except MlflowException as error:
        if run_id is not None:
            _mark_failed(client, run_id)
        raise TrackingError(f"MLflow refused the record: {_first_line(error)}") from error
    return {"store": client.tracking_uri, "run": run_id, "model": name, "version": version}


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        again = client.get_experiment_by_name(name)  # another run made it meanwhile
        if again is None:
            raise error
        return str(again.experiment_id)


def _register(client: MlflowClient, name: str, source: str, run_id: str, lineage: dict[str, str]) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {k: v[:LONGEST_TAG] for k, v in lineage.items()}
    return str(client.create_model_version(name, source, run_id, tags=tags).version)


def _mark_failed(client: MlflowClient, run_id: str) -> None:
    try:
        client.set_terminated(run_id, "FAILED")
    except MlflowException:
        return  # the store is what failed


def _lineage(record: Record) -> dict[str, str]:
    """Return where a model comes from: its source, its data, and the key of every stage it went through."""
    model = record["model"]
    tags = {"source": model["source"], "source_sha256": model["sha256"], "task": model["task"]}
    tags |= {f"data.{kind}": data["fingerprint"] for kind, data in record["data"].items()}
    for number, stage in enumerate(record["stages"]):
        tags[f"stage.{number}.{stage['stage']}"] = stage["key"]
    tags["weights_sha256"] = record["stages"][-1]["weights_sha256"]
    tags |= {f"artifact.{a['format']}.{a['precision']}": a["sha256"] for a in record["artifacts"]}
    tags |= {f"version.{package}": told for package, told in record["versions"].items()}
    return {f"edgeopt.{k}": str(v) for k, v in tags.items()}


def _metrics(record: Record) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step."""
    for step, stage in enumerate(record["stages"]):
        found = {k: v for k, v in stage["evaluation"].items() if k != "samples"} | stage["counts"]
        found |= {"seconds": stage.get("seconds"), "changed": (stage.get("changed") or {}).get("count")}
        found |= {"train_loss": (stage.get("training") or {}).get("loss")}
        yield from ((k, float(v), step) for k, v in found.items() if _is_number(v))
    for artifact in record["artifacts"]:
        values = artifact["metrics"] | {"size_bytes": artifact["size_bytes"]}
        place = f"{artifact['format']}/{artifact['precision']}"
        yield from ((f"{place}/{k}", float(v), 0) for k, v in values.items() if _is_number(v))


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of everything that is set in nested options."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{place}.{key}" if place else str(key), inner)
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        for number, inner in enumerate(value):
            yield from _leaves(f"{place}.{number}", inner)
    elif value not in (None, [], ""):
        yield place, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first_line(error: MlflowException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
