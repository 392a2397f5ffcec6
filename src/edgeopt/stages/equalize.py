"""Scale moved between neighbouring layers, so that the channels of a tensor between them fill one range alike.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1. There both weights have one scale per tensor. Here a weight has a scale per output
channel, which a factor on that channel leaves as good as it was; what gains is the tensor between the layers, so its
measured range takes the place of the first weight's.

Equal largest values would be equal on the calibration samples only: of 192 channels, each at its largest there, two
exceed it on every further sample where 100 were seen. So the size of a channel is a mean over several samples.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import Layer, is_shared, layers_of
from edgeopt.stages.unfold import rows_of, weight_of_rows
from edgeopt.stages.units import shape_of

aten = torch.ops.aten
# f(s·x) = s·f(x) for s > 0, channel by channel; hardtanh, ReLU6 and hard-swish are not of them.
HOMOGENEOUS = (
    aten.relu.default,
    aten.relu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.max_pool2d.default,
    aten.max_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool1d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.dropout.default,
    aten.dropout_.default,
    aten.contiguous.default,
    aten.clone.default,
)
RESHAPING = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dims, aten.squeeze.dim)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, operator.add)
STRENGTH = 1.0
MOST = 64.0
LARGEST_SAMPLES = 5
LARGEST_OVER_SIZE = 2.0
"""What the largest value of a channel may be of its size, so that a channel few samples excite is not cut off."""


@dataclass
class Tie:
    """Tensors whose channels 1.. must have one factor: one residual stream, or one tensor between two layers.

    Attributes:
        makers: layers that write them.
        readers: layers that read them.
        nodes: that compute them.
        fixed: something else reads or writes them, so no factor may change.
    """

    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    fixed: bool = False


def equalize(
    module: GraphModule,
    batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    inputs: tuple[TensorSpec, ...],
    strength: float = STRENGTH,
) -> int:
    """Divide channel c of each tensor between layers by t_c and multiply the weights that read it by t_c, in place.

    t_c = A_c^strength / W_c^(1 - strength), where A_c is the size of the channel, the mean of its largest magnitudes in
    the five samples where they are largest, and W_c the largest magnitude of the weights that read it. A residual
    stream has one t for all layers that write and read it. What the tensor passes on its way must be scale-equivariant;
    behind ReLU6, hard-swish and everything not known to be, nothing is changed, since their bounds are not the
    channel's own.

    Ensures that the function is kept up to float rounding.

    Args:
        module: of an exported program, in float, batch normalization folded.
        batches: opens the calibration samples.
        inputs: of the program, in order.
        strength: between 0 (weights become alike) and 1 (activations become alike).

    Returns:
        How many groups of tensors were equalized.

    Before: `conv2(relu(conv1(x; W1, b1)); W2)`. After: `conv2(relu(conv1(x; W1 / t, b1 / t)); W2 · t)`.
    """
    ties = [tie for tie in ties_of(module) if not tie.fixed and tie.makers and tie.readers]
    if not ties:
        return 0
    sizes = _Sizes(module, {node for tie in ties for node in tie.nodes if not _is_cut_off(node)})
    with torch.no_grad():
        for batch in batches():
            sizes.run(*(torch.from_numpy(batch[s.name]) for s in inputs))
        for tie in ties:
            activation = torch.stack([_size_of(sizes.largest[n]) for n in tie.nodes if n in sizes.largest]).amax(0)
            weight = torch.stack([_reading(layer, activation.numel()) for layer in tie.readers]).amax(0)
            factor = _factor(activation, weight, strength)
            for layer in tie.makers:
                _divide_outputs(layer, factor)
            for layer in tie.readers:
                _multiply_inputs(layer, factor)
    return len(ties)


def _size_of(largest: torch.Tensor) -> torch.Tensor:
    """Return the size of each channel, shape (channels,).

    Args:
        largest: largest magnitudes of each channel in some samples, shape (samples, channels), in descending order.
    """
    return torch.maximum(largest.mean(0), largest[0] / LARGEST_OVER_SIZE)


class _Sizes(Interpreter):
    """Takes the largest magnitudes of each channel, axis 1, of chosen nodes, one for each of a few samples, axis 0."""

    def __init__(self, module: GraphModule, nodes: set[Node]) -> None:
        super().__init__(module)
        self.nodes = nodes
        self.largest: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            here = value.abs().reshape(*value.shape[:2], -1).amax(2)
            known = torch.cat((self.largest[n], here)) if n in self.largest else here
            self.largest[n] = known.topk(min(LARGEST_SAMPLES, len(known)), dim=0).values
        return value


def ties_of(module: GraphModule) -> list[Tie]:
    """Return the groups of tensors that must keep one factor per channel, those without freedom marked as fixed."""
    layers = {layer.node: layer for layer in layers_of(module)}
    tie_of: dict[Node, Tie] = {}

    def tie(node: Node) -> Tie:
        if node not in tie_of:
            tie_of[node] = Tie(nodes=[node])
        return tie_of[node]

    for node in module.graph.nodes:
        layer = layers.get(node)
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if layer is not None and _movable(layer):
            tie(layer.input_node).readers.append(layer)
            tie(node).makers.append(layer)
        elif len(sources) == 1 and _keeps_channels(node, sources[0]):
            _unite(tie(sources[0]), tie(node), tie_of)
        elif node.target in SUMS and len(sources) == 2 and shape_of(sources[0]) == shape_of(sources[1]) != ():
            _unite(tie(sources[0]), tie(sources[1]), tie_of)
            _unite(tie(sources[0]), tie(node), tie_of)
        elif node.op != "get_attr" and not (node.op == "call_module" and not node.users):
            for fixed in (*sources, node):
                tie(fixed).fixed = True
    unique = {id(t): t for t in tie_of.values()}
    return list(unique.values())


def _is_cut_off(node: Node) -> bool:
    """Tell whether a ReLU alone reads the node: its negative values then need no integers."""
    return len(node.users) == 1 and next(iter(node.users)).target in (aten.relu.default, aten.relu_.default)


def _unite(first: Tie, second: Tie, tie_of: dict[Node, Tie]) -> None:
    if first is second:
        return
    first.makers += second.makers
    first.readers += second.readers
    first.nodes += second.nodes
    first.fixed |= second.fixed
    for node in second.nodes:
        tie_of[node] = first


def _movable(layer: Layer) -> bool:
    if layer.kind == "embedding" or is_shared(layer.module, layer.weight_node):
        return False
    if layer.bias_node is not None and is_shared(layer.module, layer.bias_node):
        return False
    if layer.bias_node is None and len(layer.node.args) > 2 and layer.node.args[2] is not None:
        return False
    return len(shape_of(layer.input_node)) == (2 if layer.kind == "linear" else layer.weight.ndim)


def _keeps_channels(node: Node, source: Node) -> bool:
    before, after = shape_of(source), shape_of(node)
    if node.target in HOMOGENEOUS:
        return len(before) == len(after) > 1
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        widths = node.args[1]
        constant = node.target is aten.constant_pad_nd.default or len(node.args) < 3 or node.args[2] == "constant"
        value = node.args[-1] if isinstance(node.args[-1], (int, float)) else 0
        assert isinstance(widths, (list, tuple))
        return constant and value == 0 and len(widths) <= 2 * (len(before) - 2)
    if node.target is aten.mean.dim:
        dims = node.args[1]
        assert isinstance(dims, (list, tuple))
        return {int(str(d)) % len(before) for d in dims} <= set(range(2, len(before)))
    if node.target in RESHAPING:
        return len(before) > 1 and len(after) > 1 and before[:2] == after[:2] and max((*before[2:], *after[2:], 1)) == 1
    return False


def _factor(activation: torch.Tensor, weight: torch.Tensor, strength: float) -> torch.Tensor:
    alive = (activation > 1e-8) & (weight > 1e-8)
    if not alive.any():
        return torch.ones_like(activation)
    factor = activation.clamp(min=1e-8) ** strength / weight.clamp(min=1e-8) ** (1 - strength)
    factor = factor / factor[alive].log().mean().exp()
    return torch.where(alive, factor, torch.ones_like(factor)).clamp(1 / MOST, MOST)


def _reading(layer: Layer, channels: int) -> torch.Tensor:
    """Return the largest magnitude of the weights that read each input channel."""
    rows = rows_of(layer)
    return rows.reshape(rows.shape[0], rows.shape[1], channels // rows.shape[0], -1).abs().amax((1, 3)).flatten()


def _divide_outputs(layer: Layer, factor: torch.Tensor) -> None:
    rows = rows_of(layer)
    layer.set_weight(weight_of_rows(layer, rows / factor.reshape(rows.shape[0], rows.shape[1], 1)))
    if (bias := layer.bias) is not None:
        layer.set_bias(bias / factor)


def _multiply_inputs(layer: Layer, factor: torch.Tensor) -> None:
    rows = rows_of(layer)
    per_input = factor.reshape(rows.shape[0], 1, -1, 1)
    wide = rows.reshape(rows.shape[0], rows.shape[1], per_input.shape[2], -1)
    layer.set_weight(weight_of_rows(layer, (wide * per_input).reshape(rows.shape)))
