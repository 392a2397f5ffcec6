"""neural-compressor's static int8: PT2E with torchao's X86InductorQuantizer; its result runs in PyTorch alone.

The quantizer knows a layer by the module class that it was exported from and passes over subclasses of `nn.Conv2d`;
with `name_layers` every convolution and linear layer is made known to it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from job import THREADS, Job, run
from modules import examples
from neural_compressor.torch.quantization import INT8StaticQuantConfig, convert, prepare

from edgeopt.stages.neural_compressor import mark_exported


def make(job: Job) -> dict[str, Any]:
    """Quantize the exported program's graph module."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    module = torch.export.load(str(job.subject / "program.pt2")).module()
    settings = dict(job.settings)
    if settings.pop("name_layers", False):
        mark_exported(module)
    else:
        module._exported, module.dynamic_shapes = True, None
    batches = examples(job)
    prepared = prepare(module, INT8StaticQuantConfig(**settings), example_inputs=batches[0])
    with torch.no_grad():
        for batch in batches:
            prepared(*batch)
        made = convert(prepared)
        torch.export.save(torch.export.export(made, batches[0]), str(job.out))
    targets = [str(node.target) for node in made.graph.nodes]
    layers = sum("conv" in t or "aten.linear" in t for t in targets)
    done = sum("dequantize_per_channel" in t for t in targets)
    return {
        "bytes": 0,
        "notes": [f"{done} of {layers} layers in int8; weights stay in float behind their quantization"],
    }


if __name__ == "__main__":
    run(make, "neural-compressor", "torchao", "torch")
