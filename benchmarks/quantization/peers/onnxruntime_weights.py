"""onnxruntime's MatMulNBits quantizer: 4-bit blocks by plain rounding, HQQ or GPTQ; it takes MatMul, and embeddings."""

from __future__ import annotations

from typing import Any

import onnx
from job import Job, run
from onnxruntime.quantization import CalibrationDataReader, QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Feeds calibration inputs one at a time, as often as the tool copies it."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self._batches = batches
        self._position = 0

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None."""
        self._position += 1
        return self._batches[self._position - 1] if self._position <= len(self._batches) else None


def make(job: Job) -> dict[str, Any]:
    """Quantize the float ONNX file."""
    prepared = str(job.out.with_name("prepared.onnx"))
    quant_pre_process(job.float_file("onnx"), prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    block, algorithm = job.settings.get("block_size", 32), job.settings["algorithm"]
    symmetric = job.settings.get("symmetric", True)
    if algorithm == "rtn":
        config: Any = DefaultWeightOnlyQuantConfig(
            block_size=block,
            is_symmetric=symmetric,
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
    elif algorithm == "hqq":
        config = HQQWeightOnlyQuantConfig(
            block_size=block, op_types_to_quantize=("MatMul", "Gather"), quant_axes=(("MatMul", 0), ("Gather", 1))
        )
    else:
        config = GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Reader(list(job.calibration())), block_size=block, op_types_to_quantize=("MatMul",)
        )
    quantizer = MatMulNBitsQuantizer(model, block_size=block, is_symmetric=symmetric, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(job.out))
    kinds = [node.op_type for node in onnx.load(str(job.out)).graph.node]
    done = kinds.count("MatMulNBits") + kinds.count("GatherBlockQuantized")
    if not done:
        raise SystemExit("no operator was quantized: the model has no MatMul with a constant weight")
    left = sum(kinds.count(kind) for kind in ("MatMul", "Gemm", "Conv"))
    return {"notes": [f"{done} weights in 4 bits; {left} MatMul, Gemm or Conv left in float"]}


if __name__ == "__main__":
    run(make, "onnxruntime", "onnx")
