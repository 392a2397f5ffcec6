"""NNCF's quantization of a PyTorch graph by its FX backend; what comes out is a graph that only PyTorch executes."""

from __future__ import annotations

from typing import Any

import nncf
import torch
from job import THREADS, Job, run


def make(job: Job) -> dict[str, Any]:
    """Quantize the exported program's graph module."""
    torch.set_num_threads(THREADS)
    settings = dict(job.settings)
    module = torch.export.load(str(job.subject / "program.pt2")).module()
    names = [s["name"] for s in job.record["inputs"]]
    batches = [tuple(torch.from_numpy(b[n]) for n in names) for b in job.calibration()]
    if settings.pop("transformer", False):
        settings["model_type"] = nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize(
        module,
        nncf.Dataset(batches, lambda batch: batch if len(batch) > 1 else batch[0]),
        preset=nncf.QuantizationPreset[settings.pop("preset", "MIXED")],
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
        **settings,
    )
    with torch.no_grad():
        torch.export.save(torch.export.export(quantized, batches[0]), str(job.out))
    return {}


if __name__ == "__main__":
    run(make, "nncf", "torch")
