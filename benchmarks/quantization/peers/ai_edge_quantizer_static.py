"""ai-edge-quantizer's static_wi8_ai8 recipe with its own calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_quantizer import quantizer, recipe
from job import Job, run

SIGNATURE = "serving_default"


def make(job: Job) -> dict[str, Any]:
    """Quantize the float LiteRT file."""
    tool = quantizer.Quantizer(
        job.float_file("litert"), getattr(recipe, job.settings.get("recipe", "static_wi8_ai8"))()
    )
    batches = [
        {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in batch.items()}
        for batch in job.calibration()
    ]
    ranges = tool.calibrate({SIGNATURE: batches})
    job.out.write_bytes(tool.quantize(ranges).quantized_model)
    return {}


if __name__ == "__main__":
    run(make, "ai-edge-quantizer", "ai-edge-litert")
