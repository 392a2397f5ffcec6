"""Prepares what every tool starts from: one model, exported once, with the inputs to calibrate and to judge on.

Calibration takes the first samples of a seeded permutation and evaluation those after them, as `edgeopt convert` does,
so that both see the same inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.core.model import Model
from edgeopt.data import is_builtin, open_data
from edgeopt.sources.request import understand
from edgeopt.tasks.execute import execute
from edgeopt.tasks.prepare import export_program, load
from edgeopt.tasks.samples import Choice, store_inputs

FORMATS = ("onnx", "litert", "coreml", "executorch")


def prepare(source: str, data: str | None, samples: int, calibration_samples: int, folder: Path) -> dict[str, Any]:
    """Write program, inputs, calibration inputs and the original's outputs to `folder`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    request = understand(source, arch=None, trust=False, shapes=())
    model = load(request)
    program, outputs = export_program(model)
    torch.export.save(program, folder / "program.pt2")
    evaluation, calibration = _choose(model, data, request.folder, samples, calibration_samples)
    labelled = store_inputs(evaluation, model.inputs, folder / "inputs")
    store_inputs(calibration, model.inputs, folder / "calibration")
    inputs = [s.to_json() for s in model.inputs]
    started = time.perf_counter()
    execute(
        runtime="torch",
        artifact=str(folder / "program.pt2"),
        inputs=inputs,
        outputs=[s.to_json() for s in outputs],
        inputs_folder=str(folder / "inputs"),
        folder=str(folder / "reference"),
        options={"threads": 1},
    )
    return {
        "name": model.name,
        "source": source,
        "data": data or model.card.data.eval,
        "task": model.card.task,
        "inputs": inputs,
        "outputs": [s.to_json() for s in outputs],
        "samples": len(evaluation.indices),
        "calibration_samples": len(calibration.indices),
        "labelled": labelled,
        "forward_seconds": round(time.perf_counter() - started, 2),
        "parameters": sum({id(p): p.numel() for p in model.module.parameters()}.values()),
        "fingerprint": _fingerprint(folder),
    }


def _choose(
    model: Model, data: str | None, base: Path, samples: int, calibration_samples: int
) -> tuple[Choice, Choice]:
    evaluation_name = data or model.card.data.eval
    calibration_name = data or model.card.data.calibration or model.card.data.eval
    if evaluation_name is None or calibration_name is None:
        raise SystemExit("give --data: the card names none")
    if data and not is_builtin(data):
        evaluation_name = calibration_name = str(Path(data).resolve())
    evaluation = open_data(evaluation_name, model.card, model.inputs, base)
    order = np.random.default_rng(0).permutation(len(evaluation)).tolist()
    if calibration_name == evaluation_name:
        read = evaluation.__getitem__
        chosen = order[calibration_samples : calibration_samples + samples]
        return Choice(chosen, read), Choice(order[:calibration_samples], read)
    source = open_data(calibration_name, model.card, model.inputs, base)
    own = np.random.default_rng(0).permutation(len(source)).tolist()
    return Choice(order[:samples], evaluation.__getitem__), Choice(own[:calibration_samples], source.__getitem__)


def float_files(record: dict[str, Any], folder: Path, formats: tuple[str, ...]) -> dict[str, str]:
    """Export the model in float; the peers' tools start from these files."""
    command = [str(Path(sys.executable).with_name("edgeopt")), "convert", record["source"], "--precision", "fp32"]
    command += ["--to", ",".join(formats), "--samples", "2", "--jobs", "1", "-q", "-o", str(folder / "float")]
    if record["data"]:
        command += ["--data", record["data"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    manifest = folder / "float" / "manifest.json"
    if not manifest.exists():
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    artifacts = json.loads(manifest.read_text())["artifacts"]
    return {a["format"]: str(folder / "float" / a["path"]) for a in artifacts}


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in ("inputs", "calibration", "reference"):
        for file in sorted((folder / part).glob("*.npy")):
            digest.update(f"{part}/{file.name}".encode() + file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--calibration-samples", type=int, default=100)
    parser.add_argument("--formats", default=",".join(FORMATS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    found = prepare(options.source, options.data, options.samples, options.calibration_samples, options.folder)
    found["float"] = float_files(found, options.folder, tuple(options.formats.split(",")))
    (options.folder / "subject.json").write_text(json.dumps(found, indent=2) + "\n")
