"""ai-edge-quantizer's 4-bit recipes, each with an algorithm of its own choosing."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from job import Job, run

SIGNATURE = "serving_default"
CALIBRATED = ("GPTQ", "OSCAR")


def make(job: Job) -> dict[str, Any]:
    """Quantize the weights of the float LiteRT file."""
    algorithm = job.settings.get("algorithm")
    make_recipe = getattr(recipe, job.settings["recipe"])
    chosen = make_recipe(algorithm_key=AlgorithmName[algorithm]) if algorithm else make_recipe()
    tool = quantizer.Quantizer(job.float_file("litert"), chosen)
    ranges = None
    if algorithm in CALIBRATED:
        batches = [
            {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in batch.items()}
            for batch in job.calibration()
        ]
        ranges = tool.calibrate({SIGNATURE: batches})
    job.out.write_bytes(tool.quantize(ranges).quantized_model)
    return {}


if __name__ == "__main__":
    run(make, "ai-edge-quantizer", "ai-edge-litert")
