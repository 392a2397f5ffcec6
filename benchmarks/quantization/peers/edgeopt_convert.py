"""edgeopt by its public command: one run writes all four formats, each executed and verified."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of quantized programs
from job import Job, run

from edgeopt.core.formats import FORMATS


def make(job: Job) -> dict[str, Any]:
    """Convert; keep the bundle, and the quantized program that its formats were lowered from."""
    record = job.record
    cache = job.out.with_name("cache")
    command = [str(Path(sys.executable).with_name("edgeopt")), "convert", record["source"]]
    precision = job.settings["precision"]
    able = [form for form in record["float"] if precision not in FORMATS[form].refuses]
    command += ["--precision", precision, "--to", ",".join(able)]
    if precision == "weight_only_wi4_afp32":
        command += ["--target", "iphone-16"]  # Core ML reads it from iOS 18 on
    command += ["--samples", "8", "--calibration-samples", str(record["calibration_samples"])]
    command += ["--min-snr", "0", "--min-agreement", "0", "--jobs", "2", "-q", "-o", str(job.out)]
    if record["data"]:
        command += ["--data", record["data"]]
    command += shlex.split(job.settings.get("options", ""))
    environment = os.environ | {"EDGEOPT_CACHE": str(cache)}  # empty: nothing is taken from an earlier run
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if not (job.out / "manifest.json").exists():
        raise SystemExit((done.stderr or done.stdout).strip().splitlines()[-1])
    manifest = json.loads((job.out / "manifest.json").read_text())
    simulation = _keep_simulation(cache, job.out.with_name("simulation.pt2"))
    shutil.rmtree(cache, ignore_errors=True)
    return {
        "artifacts": {a["format"]: str(job.out / a["path"]) for a in manifest["artifacts"]},
        "seconds_of_formats": {a["format"]: a["seconds"] for a in manifest["artifacts"]},
        "not_quantized": {a["format"]: a["not_quantized"] for a in manifest["artifacts"]},
        "failures": {f["format"]: f["reason"] for f in manifest.get("failures", [])},
        "simulation": simulation,
        "notes": [
            f"`edgeopt convert --precision {job.settings['precision']} {job.settings.get('options', '')}`".strip()
        ],
    }


def _keep_simulation(cache: Path, out: Path) -> str | None:
    """Copy the quantized program from the cache of this run, which holds what every stage made."""
    for path in sorted(cache.rglob("*.pt2"), key=lambda p: p.stat().st_mtime):
        graph = torch.export.load(str(path)).graph
        if any("quantize_per_tensor" in str(node.target) for node in graph.nodes):
            shutil.copyfile(path, out)
    return str(out) if out.exists() else None


if __name__ == "__main__":
    run(make, "edgeopt", "torchao", "torch")
