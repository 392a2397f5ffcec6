"""The largest magnitude of each channel of chosen activations over the calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeopt.core.model import TensorSpec


def largest_of_channels(
    module: GraphModule,
    nodes: Collection[Node],
    batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    inputs: tuple[TensorSpec, ...],
) -> dict[Node, torch.Tensor]:
    """Return max|x| over everything but the last axis for each node, as float32 tensors of shape (channels,)."""
    watching = _Watching(module, set(nodes))
    with torch.no_grad():
        for batch in batches():
            watching.run(*(torch.from_numpy(batch[s.name]) for s in inputs))
    return watching.largest


class _Watching(Interpreter):
    def __init__(self, module: GraphModule, nodes: set[Node]) -> None:
        super().__init__(module)
        self.nodes = nodes
        self.largest: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            here = value.detach().abs().flatten(0, -2).amax(0)
            self.largest[n] = torch.maximum(self.largest[n], here) if n in self.largest else here
        return value
