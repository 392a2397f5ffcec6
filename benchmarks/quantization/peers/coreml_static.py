"""coremltools' own W8A8. Its calibration runs models on a Mac only, so it is given the ranges that it would measure:
the minimum and maximum of every variable over all calibration inputs, by the evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from job import THREADS, Job, run

from edgeopt.mil import Evaluator, load_package
from edgeopt.mil.ranges import RangeObserver
from edgeopt.mil.w8a8 import quantize_package


def make(job: Job) -> dict[str, Any]:
    """Quantize activations, then weights, of the float Core ML package."""
    torch.set_num_threads(THREADS)
    source = Path(job.float_file("coreml"))
    observer = RangeObserver("minmax")
    evaluator = Evaluator(load_package(source))
    for batch in job.calibration():
        evaluator(batch, hook=observer)
        for name, array in batch.items():
            if array.dtype.kind == "f":
                observer("input", name, torch.from_numpy(array))
    quantize_package(source, job.out, observer.ranges(), symmetric=job.settings.get("symmetric", True))
    return {"notes": ["calibrated by the evaluator: coremltools' own calibration needs a Mac and keeps one sample"]}


if __name__ == "__main__":
    run(make, "coremltools")
