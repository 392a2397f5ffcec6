"""Latency of one artifact against another of the same format: both in one process, call by call in turn.

Only the ratio is a result. A launch gives the ratio of 20 %-trimmed means; several launches show its spread.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import plugins
from edgeopt.core.model import TensorSpec
from edgeopt.runtimes.adapter import Adapter

RUNTIMES = {"onnx": "ort", "litert": "litert", "executorch": "executorch"}
WARM_UP = 5


def launch(subject: Path, form: str, artifact: Path, other: Path, calls: int) -> dict[str, float]:
    """Return the ratio of the times of `artifact` to those of `other`, and both trimmed means in milliseconds."""
    record = json.loads((subject / "subject.json").read_text())
    inputs = tuple(TensorSpec.from_json(s) for s in record["inputs"])
    outputs = tuple(TensorSpec.from_json(s) for s in record["outputs"])
    sample = {s.name: np.array(np.load(subject / "inputs" / f"{s.name}.npy", mmap_mode="r")[0]) for s in inputs}
    plugin = plugins.find("runtimes", RUNTIMES[form])
    options: dict[str, Any] = {} if form == "executorch" else {"threads": 1}
    pair = [plugin.load(path, options) for path in (artifact, other)]
    feeds = [Adapter(session, inputs, outputs).feed(sample) for session in pair]
    times = np.empty((2, calls))
    for index in range(-WARM_UP, calls):
        for which in (0, 1) if index % 2 else (1, 0):
            start = time.perf_counter_ns()
            pair[which](feeds[which])
            if index >= 0:
                times[which, index] = time.perf_counter_ns() - start
    own, others = (_trimmed(row) / 1e6 for row in times)
    return {"ratio": own / others, "ms": own, "other_ms": others}


def spread(launches: list[dict[str, float]]) -> dict[str, Any]:
    """Return the geometric mean of the launches' ratios and their lowest and highest."""
    ratios = [one["ratio"] for one in launches]
    return {
        "ratio": round(float(np.exp(np.mean(np.log(ratios)))), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "ms": [round(one["ms"], 3) for one in launches],
        "other_ms": [round(one["other_ms"], 3) for one in launches],
    }


def _trimmed(values: np.ndarray) -> float:
    cut = len(values) // 5
    return float(np.sort(values)[cut : len(values) - cut].mean())


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    found = launch(
        Path(told["subject"]), told["format"], Path(told["artifact"]), Path(told["other"]), int(told["calls"])
    )
    Path(told["out"]).write_text(json.dumps(found) + "\n")
