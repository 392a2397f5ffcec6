"""Makes the conditioned float program and, for static precisions, the one quantized graph that formats lower."""

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
from edgeopt.stages.condition import condition
from edgeopt.stages.quantize import quantize as quantize_program


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
    """Read a float program and write what the exporters of a precision start from into the folder `out`.

    Files:
        conditioned.pt2: float, its weights on the precision's integer grid.
        quantized.pt2: static precisions only; the same with quantize and dequantize operators.
        ranges.json: static precisions only; `{"activations": {node of conditioned.pt2: [min, max]}}`.

    Args:
        program: path of the float program.
        inputs: its specifications.
        calibration: folder with `<input>.npy` of shape (batches, *input shape).
        out: a folder; it is made where it is missing. A path that ends in `.pt2` gets the quantized program alone.
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

    conditioned = condition(load_program(program), batches, specs, scheme, chosen)
    alone = out.endswith(".pt2")
    folder = Path(out).parent if alone else Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not alone:
        torch.export.save(conditioned, folder / "conditioned.pt2")
    if scheme.kind == "static":
        quantized = quantize_program(conditioned, batches, specs, scheme, chosen)
        torch.export.save(quantized.program, out if alone else folder / "quantized.pt2")
        if not alone:
            (folder / "ranges.json").write_text(json.dumps({"activations": quantized.ranges}, indent=1))
