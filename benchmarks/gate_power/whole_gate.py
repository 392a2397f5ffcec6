"""Wall time of a whole latency gate between two artifacts of about 8 ms: EfficientNet-Lite0 fp32 ONNX, in two bundles.

The command is timed as a user runs it: start of Python, launches, verdict.

    python benchmarks/gate_power/whole_gate.py --runs 3
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EDGEOPT = str(Path(sys.executable).with_name("edgeopt"))
BUDGET = "latency: {against: baseline, max_ratio: 1.05}\n"


def call(*arguments: object, codes: tuple[int, ...] = (0,)) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    ran = subprocess.run([EDGEOPT, *map(str, arguments), "--json", "-q"], cwd=ROOT, capture_output=True, text=True)
    if ran.returncode not in codes:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout), time.monotonic() - started


def gate(bundle: Path, baseline: Path) -> dict[str, Any]:
    """Time `edgeopt gate`, or the comparison alone where this version has no such verb."""
    budget = bundle.parent / "budgets.yaml"
    budget.write_text(BUDGET)
    load = os.getloadavg()[0]
    if "gate" in subprocess.run([EDGEOPT, "--help"], capture_output=True, text=True).stdout:
        command = ("gate", bundle, "--budget", budget, "--baseline", baseline)
    else:
        command = ("bench", bundle, "--against", baseline)
    _, seconds = call(*command, codes=(0, 3, 4))
    return {"verb": command[0], "seconds": round(seconds, 2), "load": load}


def measure(runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle, baseline = Path(folder) / "bundle", Path(folder) / "baseline"
        call("convert", "models/efficientnet-lite0/card.yaml", "--to", "onnx", "--precision", "fp32", "-o", bundle)
        shutil.copytree(bundle, baseline)
        found = []
        for number in range(runs):
            found.append(gate(bundle, baseline))
            print(f"{number + 1}/{runs}: {found[-1]}", flush=True)
        compared, _ = call("bench", bundle, "--against", baseline, codes=(0, 4))
    record = compared["comparisons"][0]
    walls = [w for launch in record["launches"] for w in launch["samples"][1]["wall_ns"]]
    return {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "cpu": compared["device"]["cpu"],
        "median_ms": round(statistics.median(walls) / 1e6, 2),
        "comparison": record["summary"],
        "runs": found,
    }


def markdown(result: dict[str, Any]) -> str:
    runs, compared = result["runs"], result["comparison"]
    seconds = ", ".join(f"{r['seconds']:.1f}" for r in runs)
    loads = [r["load"] for r in runs]
    bounds = f"{compared['ratio']:.4f} ({compared['low']:.4f}–{compared['high']:.4f})"
    return (
        "# A whole latency gate\n\n"
        f"`python benchmarks/gate_power/whole_gate.py --runs {len(runs)}` on {result['cpu']}, "
        f"{result['machine']['cpus']} cores, load {min(loads):.1f} to {max(loads):.1f}: `edgeopt {runs[0]['verb']}` of "
        f"two copies of EfficientNet-Lite0 fp32 ONNX, {result['median_ms']} ms a call on one thread, took "
        f"**{seconds} s**. The comparison alone: {compared['launches']} launches, {compared['pairs']} pairs, ratio "
        f"{bounds}, {compared['verdict']}.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    measured = measure(parser.parse_args().runs)
    (HERE / "whole_gate.json").write_text(json.dumps(measured, indent=2) + "\n")
    (HERE / "whole_gate.md").write_text(markdown(measured))
    print((HERE / "whole_gate.md").read_text())
