"""Shapes that a graph holds as constants, brought in line with layers that lost channels.

Before: `view(x, [batch, 16, 4, 32])` of a value that is now 96 wide. After: `view(x, [batch, 16, 3, 32])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
Shapes = dict[str, tuple[int, ...]]


def shapes_of(network: GraphModule, inputs: Sequence[torch.Tensor]) -> Shapes:
    """Return the shape of every tensor that a network computes, by the node's name."""
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.shapes


def repair(network: GraphModule, inputs: Sequence[torch.Tensor], before: Shapes, heads: set[str]) -> None:
    """Mend the constant shapes of a pruned network, in place, and make sure that its outputs keep their shapes.

    Args:
        network: with layers that lost channels.
        inputs: those that `before` was recorded with.
        before: shapes of the whole network.
        heads: linear layers whose output is split into heads: heads went, their width stayed.

    Raises:
        ValueError: a constant shape cannot be mended, or an output has another shape than before.
        RuntimeError: an operator does not run on the new shapes.
    """
    mender = _Mender(network, before, heads)
    with torch.no_grad():
        mender.run(*inputs)
    network.recompile()
    after = mender.shapes
    for node in network.graph.nodes:
        if node.op == "output":
            for value in node.all_input_nodes:
                if before.get(value.name) != after.get(value.name):
                    raise ValueError(f"output {value.name} would change its shape")


class _Recorder(Interpreter):
    def __init__(self, network: GraphModule) -> None:
        super().__init__(network)
        self.shapes: Shapes = {}

    def run_node(self, n: Node) -> Any:
        """Run a node and keep its shape."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n.name] = tuple(result.shape)
        return result


class _Mender(_Recorder):
    def __init__(self, network: GraphModule, before: Shapes, heads: set[str]) -> None:
        super().__init__(network)
        self.before = before
        self.heads = heads

    def run_node(self, n: Node) -> Any:
        """Mend a node's constants where they do not fit its input, then run it."""
        if n.op == "call_function" and n.target in (*VIEWS, aten.expand.default):
            source = n.args[0]
            assert isinstance(source, Node)
            old, new = self.before[source.name], self.shapes[source.name]
            if old != new:
                wanted = self._view(n, source, old, new) if n.target in VIEWS else self._expanded(n, old, new)
                self._write(n, wanted)
        return super().run_node(n)

    def _view(self, node: Node, source: Node, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
        result = list(self.before[node.name])
        for held, made in _aligned(old, tuple(result)):
            wanted = 1
            for axis in held:
                wanted *= new[axis]
            have = 1
            for axis in made:
                have *= result[axis]
            if wanted == have:
                continue
            wide = [axis for axis in made if result[axis] > 1]
            split = len(wide) == 2 and source.op == "call_module" and str(source.target) in self.heads
            if len(wide) != 1 and not split:
                raise ValueError(f"{node.name} splits channels in a way that cannot be followed")
            rest = have // result[wide[0]]
            if wanted % rest:
                raise ValueError(f"{node.name} cannot split {wanted} channels by {rest}")
            result[wide[0]] = wanted // rest
        return tuple(result)

    def _expanded(self, node: Node, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
        result = list(self.before[node.name])
        for back in range(1, len(old) + 1):
            if old[-back] != new[-back]:
                result[-back] = new[-back]
        return tuple(result)

    def _write(self, node: Node, wanted: tuple[int, ...]) -> None:
        sizes = list(node.args[1])  # type: ignore[arg-type]
        for axis, size in enumerate(wanted):
            if isinstance(sizes[axis], int) and sizes[axis] != -1 and sizes[axis] != size:
                sizes[axis] = size
        node.args = (node.args[0], sizes, *node.args[2:])


def _aligned(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return groups of axes of two shapes of equal content whose products agree.

    Before: `(2, 16, 128)` and `(2, 16, 4, 32)`. After: `[([0], [0]), ([1], [1]), ([2], [2, 3])]`.
    """
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = old[i] if left else 1, new[j] if right else 1
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b and i < len(old):
                a *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                right.append(j)
                j += 1
            else:
                raise ValueError(f"{old} and {new} do not hold equally much")
        groups.append((left, right))
    return groups
