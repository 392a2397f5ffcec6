"""Times two artifacts against each other on this host, call by call in turns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import plugins
from edgeopt.core.arrays import array_file
from edgeopt.core.model import TensorSpec
from edgeopt.runtimes.adapter import Adapter

WARM_UPS = 3
TRIM = 0.2


def compare_speed(
    *,
    runtime: str,
    artifact: str,
    against: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    inputs_folder: str,
    seconds: float,
    against_runtime: str | None = None,
) -> dict[str, Any]:
    """Return the ratio of the artifact's time to the other's: the trimmed mean of the log ratios of adjacent calls.

    Both run on one thread in this process, in turns, so that what slows the host slows both. It is a hint about kernels
    on this host, not a measurement of a device.

    Args:
        runtime: the plugin that executes the artifact.
        artifact, against: paths of the two.
        inputs, outputs: the original's specifications.
        inputs_folder: `<input>.npy` of shape (batches, *input shape).
        seconds: to spend, at least five pairs.
        against_runtime: the plugin that executes the other; the same where None.
    """
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    wanted = tuple(TensorSpec.from_json(s) for s in outputs)
    first = {s.name: np.array(np.load(array_file(inputs_folder, s.name), mmap_mode="r")[0]) for s in specs}
    calls = []
    for path, name in ((artifact, runtime), (against, against_runtime or runtime)):
        session = plugins.find("runtimes", name).load(Path(path), {"threads": 1})
        fed = Adapter(session, specs, wanted).feed(first)
        calls.append((session, fed))
    for session, fed in calls * WARM_UPS:
        session(fed)
    ratios: list[float] = []
    ends = time.perf_counter() + seconds
    while len(ratios) < 5 or (time.perf_counter() < ends and len(ratios) < 1000):
        spent = []
        for session, fed in calls if len(ratios) % 2 else calls[::-1]:
            started = time.perf_counter_ns()
            session(fed)
            spent.append(time.perf_counter_ns() - started)
        mine, other = spent if len(ratios) % 2 else spent[::-1]
        ratios.append(float(np.log(mine / other)))
    kept = np.sort(ratios)[int(len(ratios) * TRIM) : len(ratios) - int(len(ratios) * TRIM)]
    return {"against": Path(against).name, "ratio": round(float(np.exp(kept.mean())), 4), "pairs": len(ratios)}
