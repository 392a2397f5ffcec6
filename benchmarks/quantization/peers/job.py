"""What every peer's script is given and gives back; it needs numpy alone, so it runs in any environment.

A script is called as `python NAME.py JOB.json`; it writes one artifact and, beside the job, `made.json`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@dataclass(frozen=True)
class Job:
    """One artifact to make.

    Attributes:
        subject: folder of the model: `program.pt2`, `calibration/`, `inputs/`.
        record: the subject's own description.
        out: the artifact to write.
        settings: of this case.
    """

    subject: Path
    record: dict[str, Any]
    out: Path
    settings: dict[str, Any]

    def float_file(self, form: str) -> str:
        """Return the float artifact of a format."""
        return str(self.record["float"][form])

    def calibration(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield one dictionary of arrays per calibration batch."""
        names = [s["name"] for s in self.record["inputs"]]
        arrays = {n: np.load(self.subject / "calibration" / f"{n}.npy", mmap_mode="r") for n in names}
        for index in range(self.record["calibration_samples"] // self.record["inputs"][0]["shape"][0]):
            yield {name: np.array(array[index]) for name, array in arrays.items()}


def run(make: Callable[[Job], dict[str, Any] | None], *packages: str) -> None:
    """Make the artifact that the command line names, and write down what that took.

    Args:
        make: writes `job.out`; returns further facts (`notes`, `bytes` where the file is no measure).
        packages: whose versions belong to the result.
    """
    path = Path(sys.argv[1])
    told = json.loads(path.read_text())
    subject = Path(told["subject"])
    job = Job(subject, json.loads((subject / "subject.json").read_text()), Path(told["out"]), told["settings"])
    started = time.perf_counter()
    facts = make(job) or {}
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    made = {"seconds": round(seconds, 2), "peak_mib": round(peak / 1024), "tools": {p: version(p) for p in packages}}
    path.with_name("made.json").write_text(json.dumps(made | facts, indent=2) + "\n")
