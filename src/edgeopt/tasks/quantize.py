"""Makes the one quantized graph that several formats lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeopt.core.model import TensorSpec
from edgeopt.exporters.program import calibration_batches, load_program
from edgeopt.stages.quantize import quantize as quantize_program


def quantize(*, program: str, inputs: list[dict[str, Any]], calibration: str, out: str, threads: int = 1) -> None:
    """Read a float program, calibrate it on stored batches, and write the quantized program to `out`."""
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    quantized = quantize_program(load_program(program), calibration_batches(calibration, specs), specs)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(quantized, out)
