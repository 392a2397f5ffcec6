"""Outputs of linear layers brought to one size per channel before they are quantized, and back behind it.

In transformers the layer that ends a feed-forward block writes a few channels tens of times larger than the rest; one
scale for all of them leaves the rest no integers. What reads that output is a residual sum in float, so each channel
can be divided by its own size inside the layer and multiplied by it again before the sum: quantizing per channel, in
effect, with kernels that know one scale. The same idea on the input side is SmoothQuant (`smooth`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeopt.core.model import TensorSpec
from edgeopt.stages.channel_extremes import largest_of_channels
from edgeopt.stages.layers import Layer, layers_of
from edgeopt.stages.smooth import PASSING, insert_product, is_private
from edgeopt.stages.units import SUMS, units_of, wanting_integers

UNEVEN = 4.0


def level_outputs(
    module: GraphModule,
    batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    inputs: tuple[TensorSpec, ...],
    uneven: float = UNEVEN,
) -> None:
    """Divide each output channel c of a linear layer by t_c and multiply it by t_c before the float sum that reads it.

    t_c is the channel's largest magnitude over the samples, their geometric mean brought to 1. The function that the
    module computes stays, and so does the relative error of weights that have a scale per output channel. It costs one
    multiplication per element, so it is done only where the largest channel exceeds the median one `uneven` times.

    Args:
        module: of an exported program, in float; changed in place.
        batches: opens the calibration samples.
        inputs: of the program, in order.
        uneven: from what ratio on it pays.

    Before: `x + (W h + b)`. After: `x + t * ((W / t) h + b / t)`.
    """
    layers = _candidates(module)
    if not layers:
        return
    largest = largest_of_channels(module, [layer.node for layer in layers], batches, inputs)
    with torch.no_grad():
        for layer in layers:
            sizes = largest[layer.node].clamp(min=1e-8)
            if float(sizes.max() / sizes.median()) >= uneven:
                _level(module, layer, sizes / sizes.log().mean().exp())
    module.graph.lint()
    module.recompile()


def _candidates(module: GraphModule) -> list[Layer]:
    """Return the linear layers whose output nothing but sums that stay in float reads."""
    units = {unit.first: unit for unit in units_of(module)}
    wanted = wanting_integers(module, units)
    found = []
    for layer in layers_of(module):
        if layer.kind == "linear" and is_private(module, layer.weight_node, layer.node):
            users = _readers(layer.node)
            if users and all(user.target in SUMS and user not in wanted for user in users):
                found.append(layer)
    return found


def _level(module: GraphModule, layer: Layer, factor: torch.Tensor) -> None:
    bias = layer.bias
    layer.set_weight(layer.weight / factor[:, None])
    if bias is not None:
        layer.set_bias(bias / factor)
    insert_product(module, layer.node, factor, "levelling", list(layer.node.users))


def _readers(node: Node) -> list[Node]:
    found: list[Node] = []
    for user in node.users:
        found.extend(_readers(user) if user.target in PASSING else [user])
    return found
