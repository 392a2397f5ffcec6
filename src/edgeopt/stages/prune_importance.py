"""What a channel is worth, by three measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.stages.prune_groups import Group, Member

Importance = Literal["magnitude", "taylor", "activation"]
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor]
Loss = Callable[[GraphModule, Batch], torch.Tensor]


def score_groups(
    network: GraphModule, groups: Sequence[Group], kind: Importance, batches: Callable[[], Iterable[Batch]], loss: Loss
) -> dict[str, torch.Tensor]:
    """Return the worth of every unit of every group, by the group's name; comparable across groups.

    - magnitude: root of the summed squares of the weights that make and read the channel, each layer relative to its
      mean: H. Li et al.: "Pruning Filters for Efficient ConvNets", ICLR 2017, over all layers of the group.
    - taylor: square of the first-order change of the loss: P. Molchanov et al.: "Importance Estimation for Neural
      Network Pruning", CVPR 2019.
    - activation: mean magnitude of the channel's outputs, relative to the layer's mean.

    Args:
        network: in evaluation mode.
        groups: to score.
        kind: of measure.
        batches: of samples, for the second and third.
        loss: of a batch, for the second.
    """
    if kind == "magnitude":
        per_layer = {name: _weights(layer) for name, layer in network.named_modules()}
    elif kind == "taylor":
        per_layer = _taylor(network, batches(), loss)
    else:
        per_layer = _activations(network, batches())
    return {g.name: _of_group(g, per_layer, relative=kind != "taylor") for g in groups}


Sides = dict[str, torch.Tensor]
"""`out` and `in`: worth of a layer's output and input channels."""


def _of_group(group: Group, per_layer: dict[str, Sides], relative: bool) -> torch.Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    counted = 0
    for member in group.members:
        values = _of_member(member, per_layer)
        if values is None:
            continue
        if relative:
            values = values / values.mean().clamp(min=1e-12)
        total.index_add_(0, member.roots, values)
        counted += 1
    return (total / max(1, counted))[group.units].mean(1)


def _of_member(member: Member, per_layer: dict[str, Sides]) -> torch.Tensor | None:
    found = per_layer.get(member.layer, {}).get(member.side)
    if found is None or int(member.channels.max()) >= len(found):
        return None
    return found[member.channels].double()


def _weights(layer: nn.Module) -> Sides:
    if isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) and layer.weight is not None:
        return {"out": layer.weight.detach().abs()}
    weight = _weight(layer)
    return {} if weight is None else _sides(layer, weight.detach().square(), torch.sqrt)


def _weight(layer: nn.Module) -> torch.Tensor | None:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    return layer.weight if isinstance(layer, kinds) else None


def _sides(layer: nn.Module, values: torch.Tensor, after: Callable[[torch.Tensor], torch.Tensor] = torch.abs) -> Sides:
    """Sum values of a weight's shape over everything but its output channels, and but its input channels."""
    out, into = (1, 0) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else (0, 1)
    sums = {"out": after(values.transpose(0, out).flatten(1).sum(1))}
    incoming = after(values.transpose(0, into).flatten(1).sum(1))
    groups = getattr(layer, "groups", 1)
    sums["in"] = incoming.repeat(int(groups)) if isinstance(groups, int) and groups > 1 else incoming
    return sums


def _taylor(network: GraphModule, batches: Iterable[Batch], loss: Loss) -> dict[str, Sides]:
    totals: dict[str, Sides] = {}
    for batch in batches:
        network.zero_grad()
        loss(network, batch).backward()  # type: ignore[no-untyped-call]
        for name, layer in network.named_modules():
            weight = _weight(layer)
            if weight is not None and weight.grad is not None:
                sides = _sides(layer, weight.detach() * weight.grad, torch.square)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight.grad is not None:
                change = layer.weight.detach() * layer.weight.grad + layer.bias.detach() * _gradient(layer.bias)
                sides = {"out": change.square()}
            else:
                continue
            kept = totals.setdefault(name, {side: torch.zeros_like(value) for side, value in sides.items()})
            for side, value in sides.items():
                kept[side] += value
    network.zero_grad()
    return totals


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _activations(network: GraphModule, batches: Iterable[Batch]) -> dict[str, Sides]:
    totals: dict[str, Sides] = {}
    hooks = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            axis = -1 if isinstance(layer, nn.Linear) else 1
            size = output.detach().abs().transpose(0, axis).flatten(1).mean(1)
            kept = totals.setdefault(name, {"out": torch.zeros_like(size)})
            kept["out"] += size

        hooks.append(layer.register_forward_hook(hook))

    for name, layer in network.named_modules():
        if _weight(layer) is not None or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            watch(name, layer)
    with torch.no_grad():
        for inputs, _ in batches:
            network(*inputs)
    for hook in hooks:
        hook.remove()
    return totals
