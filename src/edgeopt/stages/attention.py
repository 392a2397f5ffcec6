"""Which output channels of a layer attention carries, unmixed, to which input channels of the layer after it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgeopt.stages.layers import Layer, layers_of
from edgeopt.stages.units import aten, movers_before

MIXING = (aten.matmul.default, aten.bmm.default)
FUSED = aten.scaled_dot_product_attention.default


def value_channels(module: GraphModule, source: Node) -> tuple[Layer, torch.Tensor] | None:
    """Return the linear layer that makes attention's values, and its channel behind each channel of `source`.

    Attention sums values over positions and never over channels, so a factor per channel may go before or after it.
    What lies between is only reshaped; the channels' way is followed by sending their numbers through.

    Args:
        module: that holds both.
        source: `[..., channels]`, what the layer behind attention reads.

    Returns:
        None where `source` is no such thing, or something else reads the values too.
    """
    after = movers_before(source)
    mixing = after[0].args[0] if after else source
    if not isinstance(mixing, Node) or mixing.op != "call_function":
        return None
    if mixing.target in MIXING:
        values = mixing.args[1]
    elif mixing.target is FUSED:
        values = mixing.args[2]
    else:
        return None
    if not isinstance(values, Node) or not all(len(n.users) == 1 for n in (*after[:-1], mixing)):
        return None
    before = movers_before(values)
    origin = before[0].args[0] if before else values
    layer = next((la for la in layers_of(module) if la.node is origin and la.kind == "linear"), None)
    if layer is None or not _lead_only_to(layer.node, before):
        return None
    numbers = torch.arange(layer.node.meta["val"].shape[-1], dtype=torch.float32)
    arrived = _send(before, layer.node, numbers.expand(tuple(layer.node.meta["val"].shape)))
    if arrived.ndim < 2 or not bool((arrived == arrived[..., :1, :]).all()):
        return None
    mixed = arrived[..., :1, :].expand(tuple(mixing.meta["val"].shape))
    sent = _send(after, mixing, mixed).flatten(0, -2)
    if not bool((sent == sent[:1]).all()):
        return None
    channels = sent[0].to(torch.int64)
    return (layer, channels) if len(set(channels.tolist())) == len(channels) else None


def _lead_only_to(origin: Node, chain: list[Node]) -> bool:
    """Whether the values that the chain picks are read by nothing beside it; other picks of a split may be."""
    picking = False
    for here, following in zip((origin, *chain), chain, strict=False):
        if len(here.users) > 1 and not picking and isinstance(here.meta.get("val"), torch.Tensor):
            return False
        picking = not isinstance(following.meta.get("val"), torch.Tensor)
    return len((origin, *chain)[-1].users) == 1


def _send(chain: list[Node], start: Node, numbers: torch.Tensor) -> torch.Tensor:
    values: dict[Node, Any] = {start: numbers}
    for node in chain:
        assert callable(node.target)
        arguments = map_arg(node.args, lambda n: values[n])
        values[node] = node.target(*arguments, **node.kwargs)
    result = values[chain[-1]] if chain else numbers
    assert isinstance(result, torch.Tensor)
    return result
