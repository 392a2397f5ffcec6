"""Queries, keys and values of a network's last attention, and the loss of their relations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgeopt.stages.units import SOFTMAX
from edgeopt.training.network import Probe, observe

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.bmm.default)


@dataclass
class AttentionValues:
    """Query, key and value of one attention as of the last run, each `[batch, heads, tokens, width]`."""

    hooks: list[torch.utils.hooks.RemovableHandle]
    seen: dict[int, torch.Tensor]
    key_is_turned: bool
    heads: int

    def values(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return them."""
        query, key, value = (self.seen[i].float() for i in range(3))
        return query, key.transpose(-1, -2) if self.key_is_turned else key, value

    def release(self) -> None:
        """Stop looking."""
        for hook in self.hooks:
            hook.remove()


def last_attention(network: GraphModule) -> AttentionValues | None:
    """Watch the last attention of a network, fused or written as matrix products; None where there is none."""
    found = None
    for node in network.graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default:
            found = ([node.args[0], node.args[1], node.args[2]], False)
        elif node.target in SOFTMAX:
            found = _written_out(node) or found
    if found is None:
        return None
    nodes, turned = found
    shape = nodes[0].meta["val"].shape
    if len(shape) != 4:
        return None
    seen: dict[int, torch.Tensor] = {}
    hooks = [_hook(probe, i, seen) for i, probe in enumerate(observe(network, nodes))]
    return AttentionValues(hooks, seen, turned, int(shape[1]))


def relations(
    ours: tuple[torch.Tensor, torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return the divergence of query-query, key-key and value-value relations, a mean over the three and all tokens.

    Heads are joined and split anew into as many as divide both widths, so that student and teacher may differ in heads.
    """
    parts = []
    for mine, other in zip(ours, theirs, strict=True):
        wide = math.gcd(mine.shape[1] * mine.shape[3], other.shape[1] * other.shape[3])
        heads = max(h for h in range(1, other.shape[1] + 1) if wide % h == 0)
        given, wanted = (torch.log_softmax(_products(x, heads), -1) for x in (mine, other))
        parts.append(torch.nn.functional.kl_div(given, wanted, reduction="none", log_target=True).sum(-1).mean())
    return torch.stack(parts).mean()


def _products(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Return `[batch, heads, tokens, tokens]` scaled products of `[batch, other heads, tokens, width]`."""
    batch, _, tokens, _ = value.shape
    split = value.transpose(1, 2).reshape(batch, tokens, heads, -1).transpose(1, 2)
    return split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])


def _hook(probe: Probe, index: int, seen: dict[int, torch.Tensor]) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen[index] = output

    return probe.register_forward_hook(keep)


def _written_out(softmax: Node) -> tuple[list[Node], bool] | None:
    """Follow a softmax back to the product of query and key, and on to that with the value."""
    source = softmax.args[0]
    for _ in range(6):
        if not isinstance(source, Node) or source.target in PRODUCTS:
            break
        source = source.args[0] if source.args else None
    reader: Node | None = softmax
    for _ in range(4):
        if reader is None or reader.target in PRODUCTS:
            break
        reader = next(iter(reader.users), None)
    if not isinstance(source, Node) or source.target not in PRODUCTS or reader is None:
        return None
    if reader.target not in PRODUCTS or not isinstance(reader.args[1], Node):
        return None
    query, key = source.args[0], source.args[1]
    assert isinstance(query, Node) and isinstance(key, Node)
    return [query, key, reader.args[1]], True
