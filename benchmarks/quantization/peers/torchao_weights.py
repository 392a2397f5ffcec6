"""torchao's 4-bit weights: plain rounding or HQQ, in groups of 32 inputs, of linear layers and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from job import Job, run
from modules import keep, load_module
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm


def make(job: Job) -> dict[str, Any]:
    """Quantize the module's weights and write them back as floats."""
    module = load_module(job)
    group = job.settings.get("group_size", 32)
    algorithm = (
        IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY
        if job.settings["algorithm"] == "hqq"
        else IntxChooseQParamsAlgorithm.AFFINE
    )
    mapping = MappingType.SYMMETRIC
    found: dict[str, float] = {}
    for name, layer in module.named_modules():
        pointwise = isinstance(layer, torch.nn.Conv2d) and layer.groups == 1 and layer.kernel_size == (1, 1)
        # HQQ takes matrices only; scales of larger kernels would be per kernel position.
        if not isinstance(layer, torch.nn.Linear) and not (pointwise and job.settings["algorithm"] == "rtn"):
            continue
        width = layer.weight.shape[1]
        per_group = width % group == 0
        config = IntxWeightOnlyConfig(
            weight_dtype=torch.int4,
            granularity=PerGroup(group) if per_group else PerAxis(0),
            mapping_type=mapping,
            intx_choose_qparams_algorithm=algorithm,
        )
        quantize_(layer, config, filter_fn=lambda m, _, wanted=layer: m is wanted)
        weight = layer.weight.dequantize()
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        found[f"{name}.weight"] = 4 + 16 / (group if per_group else width)  # scales in half precision
    return keep(job, module, found)


if __name__ == "__main__":
    run(make, "torchao", "torch")
