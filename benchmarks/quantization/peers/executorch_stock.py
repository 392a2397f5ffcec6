"""ExecuTorch's own way: PT2E with its XNNPACKQuantizer as it comes, lowered to XNNPACK."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from job import THREADS, Job, run
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def make(job: Job) -> dict[str, Any]:
    """Quantize the exported program and lower it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    module = torch.export.load(str(job.subject / "program.pt2")).module()
    names = [s["name"] for s in job.record["inputs"]]
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for batch in job.calibration():
            examples = tuple(torch.from_numpy(batch[name]) for name in names)
            prepared(*examples)
        program = torch.export.export(convert_pt2e(prepared), examples)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    job.out.write_bytes(edge.to_executorch().buffer)
    return {}


if __name__ == "__main__":
    run(make, "executorch", "torchao", "torch")
