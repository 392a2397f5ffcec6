"""Makes what the exporters of a precision start from by neural-compressor; see `edgeopt.tasks.quantize`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.exporters.program import calibration_batches, load_program
from edgeopt.stages.neural_compressor import condition_with_neural_compressor, quantize_with_neural_compressor


def quantize(
    *,
    program: str,
    inputs: list[dict[str, Any]],
    calibration: str,
    out: str,
    precision: str = "static_wi8_ai8",
    options: dict[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """Read a float program and write `conditioned.pt2` and, for static int8, `quantized.pt2` and `ranges.json`.

    Args:
        program: path of the float program.
        inputs: its specifications.
        calibration: folder with `<input>.npy` of shape (batches, *input shape).
        out: a folder; it is made where it is missing.
        precision: one that needs quantizing.
        options: fields of `QuantizationOptions`.
        threads: that PyTorch may use.
    """
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    chosen = QuantizationOptions(**(options or {}))
    scheme = scheme_of(precision)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        return calibration_batches(calibration, specs)

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    conditioned = condition_with_neural_compressor(load_program(program), batches, specs, scheme, chosen)
    torch.export.save(conditioned, folder / "conditioned.pt2")
    if scheme.kind == "static":
        quantized = quantize_with_neural_compressor(conditioned, batches, specs, scheme, chosen)
        torch.export.save(quantized.program, folder / "quantized.pt2")
        (folder / "ranges.json").write_text(json.dumps({"activations": quantized.ranges}, indent=1))
