"""Static int8: one PT2E graph, calibrated once, that ONNX, Core ML and ExecuTorch all lower."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.stages.quantizer import EdgeQuantizer
from edgeopt.worker import report


def quantize(
    program: torch.export.ExportedProgram, batches: Iterator[dict[str, np.ndarray]], inputs: tuple[TensorSpec, ...]
) -> torch.export.ExportedProgram:
    """Return the program with quantize/dequantize operators and int8 weights.

    Requires a float program. Ensures that its inputs and outputs keep their shapes and float dtype.

    Raises:
        ConversionError: the graph has nothing that can be quantized.

    Before: `conv(x, w)`. After: `conv(dq(q(x)), dq(w_int8))`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own deprecations
        prepared = prepare_pt2e(program.module(), EdgeQuantizer())
        examples: tuple[torch.Tensor, ...] = ()
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):
                examples = tuple(torch.from_numpy(batch[s.name]) for s in inputs)
                prepared(*examples)
                report(f"calibrating {count}")
        converted = convert_pt2e(prepared)
        quantized = torch.export.export(converted, examples)
    if not any("quantized_decomposed" in str(node.target) for node in quantized.graph.nodes):
        raise ConversionError("static int8: the model has no layer that can be quantized")
    return quantized
