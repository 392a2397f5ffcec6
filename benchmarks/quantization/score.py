"""Runs artifacts on the evaluation inputs and says how near they are to the original."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench.parity import Threshold, compare, read_labels
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import coreml_arithmetic
from edgeopt.tasks.execute import execute

RUNTIMES = {"onnx": "ort", "litert": "litert", "coreml": "coreml", "executorch": "executorch", "torch": "torch"}
IN_FLOAT16 = "coreml-float16"
"""Core ML packages of integer activations as devices without int8 arithmetic compute them."""


def score(subject: Path, artifact: Path, form: str, precision: str, outputs: Path) -> dict[str, Any]:
    """Return agreement, SNR, top-1 and size of one artifact; its outputs stay under `outputs`."""
    coreml = {"precision": "fp16" if form == IN_FLOAT16 else coreml_arithmetic(precision), "threads": 1}
    record = json.loads((subject / "subject.json").read_text())
    shutil.rmtree(outputs, ignore_errors=True)
    ran = execute(
        runtime=RUNTIMES["coreml" if form == IN_FLOAT16 else form],
        artifact=str(artifact),
        inputs=record["inputs"],
        outputs=record["outputs"],
        inputs_folder=str(subject / "inputs"),
        folder=str(outputs),
        options={"coreml": coreml, IN_FLOAT16: coreml, "executorch": {}}.get(form, {"threads": 1}),
    )
    return {
        "format": form,
        "bytes": size_of(artifact),
        "runtime": ran["runtime"],
        "run_seconds": round(ran["seconds"], 2),
    } | figures(record, subject, subject / "reference", outputs)


def figures(record: dict[str, Any], subject: Path, reference: Path, actual: Path) -> dict[str, Any]:
    """Compare two folders of outputs."""
    parity = compare(
        reference,
        actual,
        tuple(TensorSpec.from_json(s) for s in record["outputs"]),
        samples=record["samples"],
        labels=read_labels(subject / "inputs") if record["labelled"] else (),
        task=record["task"],
        runtime="",
        inputs="data",
        threshold=Threshold(-1e9, 0.0),
    )
    return {
        "snr_db": None if parity.snr_db is None else round(parity.snr_db, 2),
        "cosine": round(parity.cosine, 6),
        "mean_cosine": _mean_cosine(record, reference, actual),
        "agreement": parity.agreement,
        "top1": parity.top1,
        "float_top1": parity.reference_top1,
    }


def between(subject: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Return agreement and SNR of every two of our artifacts, the second against the first."""
    record = json.loads((subject / "subject.json").read_text())
    return {f"{a} / {b}": figures(record, subject, folders[a], folders[b]) for a, b in combinations(folders, 2)}


def size_of(artifact: Path) -> int:
    """Return the bytes of a file, or of all files in a package."""
    files = artifact.rglob("*") if artifact.is_dir() else (artifact,)
    return sum(f.stat().st_size for f in files if f.is_file())


def _mean_cosine(record: dict[str, Any], reference: Path, actual: Path) -> float:
    """Return the mean over samples of the cosine of the first output, the measure of embeddings."""
    name = record["outputs"][0]["name"]
    a, b = (np.load(folder / f"{name}.npy").astype(np.float64) for folder in (reference, actual))
    a, b = (x.reshape(-1, *x.shape[2:])[: record["samples"]].reshape(record["samples"], -1) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return round(float(np.mean((a * b).sum(1) / np.maximum(norms, 1e-30))), 6)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    if "between" in told:
        found = between(Path(told["subject"]), {k: Path(v) for k, v in told["between"].items()})
    else:
        paths = (Path(told[name]) for name in ("subject", "artifact"))
        found = score(*paths, told["format"], told["precision"], Path(told["outputs"]))
    Path(told["out"]).write_text(json.dumps(found, indent=2) + "\n")
