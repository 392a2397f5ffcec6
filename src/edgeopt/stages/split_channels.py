"""Channels that stand still take over half of the channels whose rounding costs most.

R. Zhao, Y. Hu, J. Dotzel, C. De Sa, Z. Zhang: "Improving Neural Network Quantization without Retraining using Outlier
Channel Splitting", ICML 2019, add channels to a layer so that a channel's value becomes the sum of two halves, rounded
half a step apart. Nets trained with weight decay have room for them: channels between a convolution and a depthwise one
that no input moves. A second copy there costs nothing, neither in size nor in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import Layer, is_shared, layers_of
from edgeopt.stages.still_channels import STILL
from edgeopt.stages.units import clamp_after
from edgeopt.stages.walk import call_node, run_layer

Batches = Callable[[], Iterator[dict[str, np.ndarray]]]
aten = torch.ops.aten
PADS = (aten.pad.default, aten.constant_pad_nd.default)
STEPS = 255
SAMPLES_JUDGED = 16
WORTH = 0.02
"""Of the damage of all channels: one that does less is not split."""


@dataclass(frozen=True)
class Chain:
    """A dense convolution, a depthwise one and one of 1×1, clamps and pads between them, that nothing else reads.

    Attributes:
        first, depthwise, last: the layers; what the first writes, the second reads channel by channel.
        clamped: node of the first layer's result, behind its clamp if it has one.
        made: of the depthwise layer's, likewise.
    """

    first: Layer
    depthwise: Layer
    last: Layer
    clamped: Node
    made: Node

    @property
    def nodes(self) -> set[Node]:
        """The nodes whose values tell which channels are split: both layers' before and behind their clamps."""
        return {self.first.node, self.depthwise.input_node, self.depthwise.node, self.made}


@dataclass
class _Ends:
    """Smallest and largest value, sum and number of the values of each channel of a node."""

    low: torch.Tensor
    high: torch.Tensor
    total: torch.Tensor
    count: int = 0

    @property
    def step(self) -> float:
        """The step of eight bits between zero and all that was seen."""
        return (max(float(self.high.max()), 0.0) - min(float(self.low.min()), 0.0)) / STEPS


@dataclass
class _Seen:
    ends: dict[Node, _Ends] = field(default_factory=dict)

    def add(self, node: Node, value: torch.Tensor) -> None:
        flat = value.transpose(0, 1).flatten(1)
        low, high = torch.aminmax(flat, dim=1)
        known = self.ends.setdefault(node, _Ends(low, high, torch.zeros_like(low)))
        known.low, known.high = torch.minimum(known.low, low), torch.maximum(known.high, high)
        known.total, known.count = known.total + flat.sum(1), known.count + flat.shape[1]


def split_channels(module: GraphModule, batches: Batches, inputs: tuple[TensorSpec, ...]) -> int:
    """Give the still channels of depthwise chains a copy of the worst channels there, in place.

    Only a channel that no sample brings to its clamp is split, so that half a step more shifts all its values alike.
    The function stays as it is but for the borders of the depthwise layer, whose zeros are not shifted: a copy is off
    there by half a step at most. What a still channel gave goes into the last layer's bias.

    Args:
        module: of an exported program, in float, batch normalization folded, equalized.
        batches: opens the calibration samples.
        inputs: of the program, in order.

    Returns:
        How many channels were split.

    Before: `W[c]·f(d[c] * x[c] + e[c])`.
    After: `W[c]/2·f(d[c] * x[c] + e[c]) + W[c]/2·f(d[c] * (x[c] + s/2) + e[c] - s/2·Σd[c])`, s the step of x.
    """
    with torch.no_grad():
        chains = list(chains_of(module))
        seen = _Seen()
        if chains:
            _watch(module, chains, batches, inputs, lambda _, node, values: seen.add(node, values[node]))
        chains = [c for c in chains if _still(c, seen).any() and _unclamped(module, c, seen).any()]
        damage: dict[Node, torch.Tensor] = {}

        def look(chain: Chain, node: Node, values: dict[Node, torch.Tensor]) -> None:
            if node is chain.made:
                entering = chain.depthwise.input_node
                found = _damage(chain, values[entering], values[node], seen.ends[entering].step)
                damage[node] = damage.get(node, torch.zeros_like(found)) + found

        if chains:
            _watch(module, chains, lambda: islice(batches(), SAMPLES_JUDGED), inputs, look)
        return sum(_split(module, chain, seen, damage[chain.made]) for chain in chains)


def chains_of(module: GraphModule) -> Iterator[Chain]:
    """Yield the chains whose channels may be changed: weights and biases of their own, one reader each."""
    layers = {layer.node: layer for layer in layers_of(module) if layer.kind == "convolution" and _is_own(layer)}
    for first in layers.values():
        clamped = (first.node, *clamp_after(first.node))[-1]
        entering = clamped
        while (reader := _reader(entering)) is not None and reader.target in PADS:
            entering = reader
        depthwise = None if reader is None else layers.get(reader)
        if depthwise is None or depthwise.groups != len(first.weight) or len(depthwise.weight) != len(first.weight):
            continue
        made = (depthwise.node, *clamp_after(depthwise.node))[-1]
        reader = _reader(made)
        last = None if reader is None else layers.get(reader)
        if last is None or last.input_node is not made or set(last.weight.shape[2:]) != {1}:
            continue
        if first.groups == last.groups == 1:
            yield Chain(first, depthwise, last, clamped, made)


def _reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_own(layer: Layer) -> bool:
    computed = layer.bias_node is None and len(layer.node.args) > 2 and layer.node.args[2] is not None
    constants = [n for n in (layer.weight_node, layer.bias_node) if n is not None]
    return not computed and not any(is_shared(layer.module, n) for n in constants)


def _watch(
    module: GraphModule,
    chains: list[Chain],
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    look: Callable[[Chain, Node, dict[Node, torch.Tensor]], None],
) -> None:
    """Run the samples and show each of a chain's nodes when it is computed, with those before it."""
    chain_of = {node: chain for chain in chains for node in chain.nodes}
    values: dict[Node, torch.Tensor] = {}

    class Watching(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in chain_of:
                values[n] = value
                look(chain_of[n], n, values)
                if n is chain_of[n].made:
                    values.clear()
            return value

    for batch in batches():
        Watching(module).run(*(torch.from_numpy(batch[s.name]) for s in inputs))


def _still(chain: Chain, seen: _Seen) -> torch.Tensor:
    """Return which channels no input moves, not even behind a clamp that hides it."""
    ends = seen.ends[chain.depthwise.node]
    return ends.high - ends.low <= STILL * seen.ends[chain.made].step


def _unclamped(module: GraphModule, chain: Chain, seen: _Seen) -> torch.Tensor:
    """Return which channels move, and would not reach their clamp with one step more or less either."""
    ends, step = seen.ends[chain.first.node], seen.ends[chain.depthwise.input_node].step
    outermost = torch.stack((ends.low - step, ends.high + step))
    kept = outermost
    if chain.clamped is not chain.first.node:
        kept = torch.as_tensor(call_node(module, chain.clamped, lambda _: outermost.clone()))
    return (kept == outermost).all(0) & (ends.high - ends.low > step)


def _damage(chain: Chain, value: torch.Tensor, made: torch.Tensor, step: float) -> torch.Tensor:
    """Return for each channel the squared error that rounding it alone brings to the last layer's output."""
    error = torch.round(value / step) * step - value
    passed = run_layer(chain.depthwise, chain.depthwise.node, error, chain.depthwise.weight, None, {})
    passed = passed * ((made > made.min()) & (made < made.max()))  # at its ends, a clamp lets no error through
    return passed.square().transpose(0, 1).flatten(1).sum(1) * chain.last.weight.square().flatten(2).sum((0, 2))


def _split(module: GraphModule, chain: Chain, seen: _Seen, damage: torch.Tensor) -> int:
    free = torch.nonzero(_still(chain, seen)).flatten().tolist()
    worth = _unclamped(module, chain, seen) & (damage >= WORTH * damage.sum()) & ~_still(chain, seen)
    order = [c for c in torch.argsort(damage, descending=True).tolist() if worth[c]]
    pairs = list(zip(free, order, strict=False))
    if not pairs:
        return 0
    layers = (chain.first, chain.depthwise, chain.last)
    first, depthwise, last = (layer.weight.clone() for layer in layers)
    biases = [torch.zeros(len(x.weight)) if x.bias is None else x.bias.clone() for x in layers]
    half = seen.ends[chain.depthwise.input_node].step / 2
    ends = seen.ends[chain.made]
    for still, channel in pairs:
        biases[2] += last[:, still].flatten(1).sum(1) * ends.total[still] / ends.count
        first[still], depthwise[still] = first[channel], depthwise[channel]
        biases[0][still] = biases[0][channel] + half
        biases[1][still] = biases[1][channel] - half * depthwise[channel].sum()
        last[:, channel] /= 2
        last[:, still] = last[:, channel]
    for layer, weight, bias in zip(layers, (first, depthwise, last), biases, strict=True):
        layer.set_weight(weight)
        layer.set_bias(bias)
    return len(pairs)
