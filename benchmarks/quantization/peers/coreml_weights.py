"""coremltools' 4-bit weights: blocks of linear int4 (iOS 18), or palettes of 16 values."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import torch
from job import THREADS, Job, run


def make(job: Job) -> dict[str, Any]:
    """Convert the program for iOS 18 in float, then compress its weights."""
    torch.set_num_threads(THREADS)
    program = torch.export.load(str(job.subject / "program.pt2")).run_decompositions()
    names = [s["name"] for s in job.record["inputs"]]
    model = ct.convert(
        program,
        inputs=[ct.TensorType(name=n) for n in names] if job.settings.get("rename") else None,
        outputs=[ct.TensorType(name=s["name"]) for s in job.record["outputs"]],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    if job.settings["kind"] == "linear":
        op: Any = cto.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int4",
            granularity="per_block",
            block_size=job.settings.get("block_size", 32),
        )
        made = cto.coreml.linear_quantize_weights(model, cto.coreml.OptimizationConfig(op))
    else:
        op = cto.coreml.OpPalettizerConfig(
            nbits=4,
            mode="kmeans",
            granularity=job.settings.get("granularity", "per_tensor"),
            group_size=job.settings.get("group_size", 32),
        )
        made = cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(op))
    made.save(str(job.out))
    return {}


if __name__ == "__main__":
    run(make, "coremltools")
