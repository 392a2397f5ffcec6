"""What a channel costs: multiply-accumulates or parameters that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.core.model import TensorSpec
from edgeopt.stages.prune_groups import Group
from edgeopt.training.network import examples

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def unit_costs(
    network: GraphModule, inputs: Sequence[TensorSpec], groups: Sequence[Group], kind: Literal["macs", "params"]
) -> dict[str, float]:
    """Return for each group what one of its units costs, relative to the mean of all groups.

    What a layer costs is shared equally by its output channels, and by its input channels; a unit costs its share on
    every side that it goes with.

    Args:
        network: in evaluation mode.
        inputs: of the network.
        groups: whose units are told of.
        kind: multiply-accumulates of one sample, or weights.
    """
    per_layer = _layer_costs(network, inputs, kind)
    costs = {}
    for group in groups:
        cost = 0.0
        for member in group.members:
            layer = per_layer.get(member.layer)
            if layer is not None:
                weight, total = layer
                cost += total * len(member.channels) / max(1, _channels(weight, member.side))
        costs[group.name] = cost / len(group.units)
    mean = sum(costs.values()) / max(1, len(costs))
    return {name: cost / mean if cost and mean else 1.0 for name, cost in costs.items()}


def _layer_costs(
    network: GraphModule, inputs: Sequence[TensorSpec], kind: Literal["macs", "params"]
) -> dict[str, tuple[nn.Module, float]]:
    found: dict[str, tuple[nn.Module, float]] = {}
    hooks = []

    def watch(name: str, layer: nn.Module) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)

        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            channels = weight.shape[1] if isinstance(layer, nn.modules.conv._ConvTransposeNd) else weight.shape[0]
            places = output[0].numel() / channels if kind == "macs" else 1.0
            found[name] = layer, found.get(name, (layer, 0.0))[1] + weight.numel() * places

        hooks.append(layer.register_forward_hook(hook))

    for name, layer in network.named_modules():
        if isinstance(layer, LAYERS):
            watch(name, layer)
    with torch.no_grad():
        network(*examples(tuple(inputs), 2))
    for hook in hooks:
        hook.remove()
    return found


def _channels(layer: nn.Module, side: str) -> int:
    names = ("out_channels", "out_features") if side == "out" else ("in_channels", "in_features")
    return next(int(count) for n in names if isinstance(count := getattr(layer, n, None), int))
