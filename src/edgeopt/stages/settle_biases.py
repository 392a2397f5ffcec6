"""Biases that every format stores as the same 32-bit integers.

An integer kernel adds a bias in steps of the input's scale times the weight's. ONNX Runtime, LiteRT and XNNPACK each
divide and round for themselves, and Core ML keeps it in float16; a bias near the middle between two integers would come
out differently. Here it becomes the integer nearest to its float16 value, as a float: all that round it find that one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from edgeopt.stages.layers import CONVOLUTIONS, LINEAR, TRANSPOSED, get_constant, is_shared
from edgeopt.stages.observers import PerChannelWeightObserver, RangeObserver

MOST_STEPS = 2.0**22
"""Beyond it float32 does not tell neighbouring integers apart safely."""


def settle_biases(prepared: GraphModule) -> dict[str, torch.Tensor]:
    """Give the layers of a calibrated graph rounded biases; what they had stays as it is.

    Returns the new ones by the names of the constants, for `with_biases`.
    """
    settled: dict[str, torch.Tensor] = {}
    for node in prepared.graph.nodes:
        if node.op != "call_function" or node.target not in (*CONVOLUTIONS, *TRANSPOSED, *LINEAR) or len(node.args) < 3:
            continue
        source, weight = (_observer(prepared, a) for a in node.args[:2])
        bias = node.args[2]
        if not isinstance(source, RangeObserver) or not isinstance(weight, PerChannelWeightObserver):
            continue
        if isinstance(bias, Node) and bias.op == "get_attr" and not is_shared(prepared, bias):
            scale = source.calculate_qparams()[0].double() * weight.calculate_qparams()[0].double()
            value = rounded(get_constant(prepared, bias).detach(), scale)
            owner, _, leaf = str(bias.target).rpartition(".")
            setattr(prepared.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
            settled[str(bias.target)] = value
    return settled


def with_biases(program: torch.export.ExportedProgram, biases: Mapping[str, torch.Tensor]) -> None:
    """Replace the biases of a float program, in place."""
    module = program.module()
    for name, value in biases.items():
        owner, _, leaf = name.rpartition(".")
        getattr(module.get_submodule(owner), leaf).data.copy_(value)


def rounded(bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a bias on the grid of its scales, both of shape (channels,); as it is where it has too many steps."""
    steps = torch.round(bias.half().double() / scale)
    return torch.where(steps.abs() <= MOST_STEPS, (steps * scale).to(bias.dtype), bias)


def _observer(prepared: GraphModule, node: object) -> torch.nn.Module | None:
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    return prepared.get_submodule(str(node.target))
