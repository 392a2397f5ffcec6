"""neural-compressor's weight-only algorithms on PyTorch modules: RTN, GPTQ, AWQ, HQQ, AutoRound; linear layers only."""

from __future__ import annotations

from typing import Any

import torch
from job import Job, run
from modules import examples, keep, load_module
from neural_compressor.torch.quantization import (
    AWQConfig,
    GPTQConfig,
    HQQConfig,
    RTNConfig,
    TEQConfig,
    convert,
    prepare,
)

CONFIGS = {"rtn": RTNConfig, "gptq": GPTQConfig, "awq": AWQConfig, "hqq": HQQConfig, "teq": TEQConfig}


def make(job: Job) -> dict[str, Any]:
    """Quantize the module and write its weights back as floats."""
    module = load_module(job)
    settings = dict(job.settings)
    algorithm = settings.pop("algorithm")
    group = settings.get("group_size", 32)
    options: dict[str, Any] = {} if algorithm == "hqq" else {"use_sym": True}
    if algorithm == "gptq":
        options["model_path"] = str(job.subject)  # without one, it asks a model hub for the model named ""
    config = CONFIGS[algorithm](bits=4, group_size=group, **options)
    batches = examples(job)
    linear = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    prepared = prepare(module, config, example_inputs=batches[0])
    if algorithm in ("gptq", "awq", "teq"):
        with torch.no_grad():
            for batch in batches:
                prepared(*batch)
    made = convert(prepared)
    found: dict[str, float] = {}
    for name in linear:
        layer = made.get_submodule(name)
        if type(layer) is torch.nn.Linear:
            continue
        plain = _as_linear(layer)
        made.set_submodule(name, plain)
        found[f"{name}.weight"] = 4 + 16 / group
    return keep(job, made, found)


def _as_linear(layer: Any) -> torch.nn.Linear:
    """Return a linear layer with the weights that a packed one multiplies by."""
    if hasattr(layer, "dequantize_weight"):
        weight = layer.dequantize_weight()
    else:
        packed = layer.unpack()
        integers, scales, zero = packed["int_weight"], packed["scales"].float(), packed["zp"]
        group = -(-integers.shape[1] // scales.shape[1])
        wide = [x.repeat_interleave(group, 1)[:, : integers.shape[1]] for x in (scales, zero)]
        weight = (integers.float() - wide[1].float()) * wide[0]
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    plain.weight.data.copy_(weight)
    if layer.bias is not None:
        plain.bias.data.copy_(layer.bias)
    return plain


if __name__ == "__main__":
    run(make, "neural-compressor", "torch")
