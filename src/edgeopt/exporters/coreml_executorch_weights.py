"""Finds a program's float weights that lie on an integer grid, and the integers and scales that they came from.

Core ML and ExecuTorch both store what is found here, so that a weight is the same in both, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
LINEAR = (aten.linear.default,)
EMBEDDINGS = (aten.embedding.default,)
KINDS = {
    **dict.fromkeys(CONVOLUTIONS, "convolution"),
    **dict.fromkeys(TRANSPOSED, "transposed"),
    **dict.fromkeys(LINEAR, "linear"),
    **dict.fromkeys(EMBEDDINGS, "embedding"),
}
_ON_GRID = 1e-3  # of a step: what float32 loses between an integer, its scale and back


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A constant float weight of a program.

    Attributes:
        name: of the module that holds it, or of its first layer.
        kind: `convolution`, `transposed`, `linear` or `embedding`, of its first layer.
        node: the `get_attr` node.
        layers: nodes that multiply by it, or look rows up in it.
        value: float.
        axis: of output channels; for embeddings, of rows.
    """

    name: str
    kind: str
    node: Node
    layers: tuple[Node, ...]
    value: Tensor
    axis: int


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight as integers: its value is `values * scale`, each scale repeated over its block.

    Attributes:
        values: int8 in the weight's shape; 4-bit ones in [-7, 7].
        scale: float32 of the weight's rank; each dimension divides the weight's.
        bits: 8 or 4.
        exact: whether the weight lay on this grid, so that nothing was rounded.
    """

    values: Tensor
    scale: Tensor
    bits: int
    exact: bool

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale for each output channel at most."""
        return sum(size > 1 for size in self.scale.shape) <= 1 and not self.blocks

    @property
    def blocks(self) -> bool:
        """Whether several scales share an output channel."""
        return self.scale.ndim == 2 and self.scale.shape[1] > 1


def layer_weights(module: GraphModule, keep_float: Iterable[str] = ()) -> list[LayerWeight]:
    """Return the float weights of a program's layers in the order of execution, without those of `keep_float`.

    A weight that several layers share is returned once. Those of grouped transposed convolutions, whose output channels
    are spread over two axes, are left out.
    """
    kept = set(keep_float)
    found: dict[str, LayerWeight] = {}
    for node in module.graph.nodes:
        kind = KINDS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        weight = node.args[0 if kind == "embedding" else 1]
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        if kind == "transposed" and len(node.args) > 6 and node.args[6] != 1:
            continue
        key = str(weight.target)
        owner, _, _ = key.rpartition(".")
        if (owner or node.name) in kept or not (value := constant(module, weight)).is_floating_point():
            continue
        if key in found:
            first = found[key]
            found[key] = LayerWeight(first.name, first.kind, first.node, (*first.layers, node), first.value, first.axis)
        else:
            axis = 1 if kind == "transposed" else 0
            found[key] = LayerWeight(owner or node.name, kind, weight, (node,), value.detach(), axis)
    return list(found.values())


def constant(module: GraphModule, node: Node) -> Tensor:
    """Return the tensor that a `get_attr` node names."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def integers_of(weight: LayerWeight, bits: int, block_size: int | None = None) -> Integers:
    """Return the integers of a weight on the grid that it lies on.

    Grids are symmetric, with scale = max|w| / (2^(bits-1) - 1): for 4 bits per block of `block_size` input channels of
    a linear layer, or per output channel, or else 8 bits per output channel. A weight on none of them is rounded to the
    nearest values of the first.
    """
    candidates: list[tuple[int, int | None]] = [(bits, None)] if bits == 8 else [(bits, None), (8, None)]
    value = weight.value
    if bits < 8 and block_size and weight.kind == "linear" and value.shape[1] % block_size == 0:
        candidates.insert(0, (bits, block_size))
    tried = [_on(value, weight.axis, wide, block) for wide, block in candidates]
    return next((grid for grid in tried if grid.exact), tried[0])


def _on(value: Tensor, axis: int, bits: int, block: int | None) -> Integers:
    top = 2 ** (bits - 1) - 1
    real = value.float()
    if block is None:
        dims = [d for d in range(real.ndim) if d != axis]
        largest = real.abs().amax(dims, keepdim=True)
        spread = largest
    else:
        largest = real.reshape(real.shape[0], -1, block).abs().amax(2)
        spread = largest.repeat_interleave(block, 1)
    scale = torch.where(largest > 0, largest / top, 1.0)
    steps = real / torch.where(spread > 0, spread / top, 1.0)
    values = torch.round(steps).clamp(-top, top)
    exact = bool((steps - values).abs().max() < _ON_GRID) if value.numel() else True
    return Integers(values.to(torch.int8), scale, bits, exact)


def add_constant(module: GraphModule, before: Node, value: Tensor, name: str) -> Node:
    """Add a buffer to the module and a node that reads it before another node."""
    taken = {n for n, _ in module.named_buffers()} | {n for n, _ in module.named_parameters()}
    free = next(n for i in range(len(taken) + 1) if (n := f"{name}_{i}") not in taken)
    module.register_buffer(free, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(free)
    node.meta["val"] = value
    return node
