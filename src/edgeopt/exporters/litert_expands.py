"""Expansions that the operator behind them does by itself."""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
EXPANSIONS = (aten.expand.default, aten.expand_as.default)
BROADCASTING = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.maximum.default)


def leave_broadcasting_to_operators(module: GraphModule) -> GraphModule:
    """Let elementwise operators read what an expansion reads, where their result has the same shape.

    litert-torch keeps the layout of one operand and of the expanded other apart, and then refuses their product
    ("operands don't have broadcast-compatible shapes").

    Before: `mul(x, expand(y, [1, 64, 4, 256]))`. After: `mul(x, y)` with `y` of shape [1, 64, 4, 1].
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in EXPANSIONS:
            continue
        source = node.args[0]
        for user in list(node.users):
            if user.target in BROADCASTING and _keeps_shape(user, node, source):
                user.replace_input_with(node, source)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _keeps_shape(user: Node, expanded: Node, source: Node) -> bool:
    operands = [source if a is expanded else a for a in user.args if isinstance(a, Node)]
    shapes = [tuple(n.meta["val"].shape) for n in operands]
    if user.kwargs or len(operands) != len(user.args) or any(len(s) != len(shapes[0]) for s in shapes):
        return False
    return np.broadcast_shapes(*shapes) == tuple(user.meta["val"].shape)
