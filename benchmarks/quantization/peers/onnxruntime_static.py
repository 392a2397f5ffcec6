"""onnxruntime's quantize_static as its documentation recommends for x86: u8s8, per channel, QDQ, preprocessed model."""

from __future__ import annotations

from typing import Any

import onnx
from job import Job, run
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Feeds calibration inputs one at a time."""

    def __init__(self, job: Job) -> None:
        self._batches = job.calibration()

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None."""
        return next(self._batches, None)


def make(job: Job) -> dict[str, Any]:
    """Quantize the float ONNX file."""
    prepared = str(job.out.with_name("prepared.onnx"))
    quant_pre_process(job.float_file("onnx"), prepared, skip_symbolic_shape=True)
    method = CalibrationMethod[job.settings["method"]]
    options: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    if method is CalibrationMethod.Percentile:
        options["CalibPercentile"] = job.settings.get("percentile", 99.999)
    quantize_static(
        prepared,
        str(job.out),
        Reader(job),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
        extra_options=options,
    )
    kinds = [node.op_type for node in onnx.load(str(job.out)).graph.node]
    return {"notes": [f"{kinds.count('QuantizeLinear')} QuantizeLinear nodes"]}


if __name__ == "__main__":
    run(make, "onnxruntime", "onnx")
