"""The layers that a user keeps in float, found in an exported program by name and in an artifact by their weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
CLAMPS = (
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default,
    aten.clamp.default, aten.clamp_.default, aten.clamp_min.default,
)  # fmt: skip


def kept_nodes(module: GraphModule, names: Collection[str]) -> frozenset[str]:
    """Return the nodes that `names` mean, by layer or by node, and the clamps fused into them."""
    kept = set()
    for node in _named(module, names):
        kept.add(node.name)
        users = list(node.users)
        if len(users) == 1 and users[0].target in CLAMPS:
            kept.add(users[0].name)
    return frozenset(kept)


def kept_weights(module: GraphModule, names: Collection[str]) -> frozenset[bytes]:
    """Return the fingerprints of the weights of the layers that `names` mean."""
    found = set()
    for node in _named(module, names):
        weight = _weight_node(node)
        if weight is not None:
            value: Any = module
            for part in str(weight.target).split("."):
                value = getattr(value, part)
            found.add(fingerprint(value.detach().numpy()))
    return frozenset(found)


def fingerprint(weight: np.ndarray) -> bytes:
    """Return what a float weight has in common with itself in any memory order."""
    return np.sort(weight.astype(np.float32), axis=None).tobytes()


def _named(module: GraphModule, names: Collection[str]) -> list[Node]:
    if not names:
        return []
    return [n for n in module.graph.nodes if n.op == "call_function" and (n.name in names or _layer_name(n) in names)]


def _layer_name(node: Node) -> str | None:
    weight = _weight_node(node)
    return None if weight is None else str(weight.target).rpartition(".")[0] or node.name


def _weight_node(node: Node) -> Node | None:
    position = 0 if node.target is aten.embedding.default else 1
    found = node.args[position] if len(node.args) > position else None
    return found if isinstance(found, Node) and found.op == "get_attr" else None
