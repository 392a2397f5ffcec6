"""For tools that quantize PyTorch modules in place: where the module comes from, and how its result is kept and sized.

Such tools ship no file for a device. Their weights are written back as floats on their grid and run in PyTorch; the
size is what the packed integers, scales and zero points would take, everything else counted as it is.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from job import THREADS, Job

from edgeopt.sources.request import understand
from edgeopt.tasks.prepare import load


def load_module(job: Job) -> torch.nn.Module:
    """Return the model as its source builds it, linear layers and all."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    return load(understand(job.record["source"], arch=None, trust=False, shapes=())).module


def examples(job: Job) -> list[tuple[torch.Tensor, ...]]:
    """Return the calibration inputs as the module takes them."""
    names = [s["name"] for s in job.record["inputs"]]
    return [tuple(torch.from_numpy(batch[name]) for name in names) for batch in job.calibration()]


def keep(job: Job, module: torch.nn.Module, quantized: dict[str, float]) -> dict[str, Any]:
    """Export a module whose weights are floats on their grid.

    Args:
        job: says where to.
        module: to run.
        quantized: bits per weight of each quantized weight, by its parameter's name, scales and zero points included.
    """
    with torch.no_grad():
        torch.export.save(torch.export.export(module, examples(job)[0]), str(job.out))
    total, seen = 0.0, set()
    for name, tensor in (*module.named_parameters(remove_duplicate=True), *module.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            total += tensor.numel() * (quantized[name] / 8 if name in quantized else tensor.element_size())
    if not quantized:
        raise SystemExit("no layer was quantized: the tool takes linear layers only")
    return {"bytes": round(total), "notes": [f"{len(quantized)} weights quantized; runs in PyTorch, no file to ship"]}
