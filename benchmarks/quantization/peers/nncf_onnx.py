"""NNCF's post-training quantization of ONNX files, and its 4-bit weight compression."""

from __future__ import annotations

from typing import Any

import nncf
import onnx
from job import Job, run


def make(job: Job) -> dict[str, Any]:
    """Quantize or compress the float ONNX file."""
    model = onnx.load(job.float_file("onnx"))
    settings = dict(job.settings)
    dataset = nncf.Dataset(list(job.calibration()))
    count = job.record["calibration_samples"]
    if settings.pop("weights_only", False):
        mode = nncf.CompressWeightsMode[settings.pop("mode", "INT4_SYM")]
        made = nncf.compress_weights(model, mode=mode, dataset=dataset, subset_size=count, **settings)
    else:
        if settings.pop("transformer", False):
            settings["model_type"] = nncf.ModelType.TRANSFORMER
        preset = nncf.QuantizationPreset[settings.pop("preset", "MIXED")]
        made = nncf.quantize(
            model,
            dataset,
            preset=preset,
            target_device=nncf.TargetDevice.CPU,
            subset_size=count,
            **settings,
        )
    onnx.save_model(made, str(job.out))
    return {}


if __name__ == "__main__":
    run(make, "nncf", "onnx")
