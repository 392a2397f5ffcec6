"""Channels that stand still take over part of the channels whose rounding costs most.

R. Zhao, Y. Hu, J. Dotzel, C. De Sa, Z. Zhang: "Improving Neural Network Quantization without Retraining using Outlier
Channel Splitting", ICML 2019, add channels to a layer so that a channel's value becomes the sum of two halves, rounded
half a step apart. Nets trained with weight decay have room for them: channels between a convolution and a depthwise one
that no input moves. Copies there cost nothing, neither in size nor in time.
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
WORTH = 0.01
"""Of the damage of all channels: what a copy must save."""
OFTEN = 0.01
"""Of a channel's values: how many may come near its clamp."""


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
    """The ends of each node's channels over the samples."""

    ends: dict[Node, _Ends] = field(default_factory=dict)

    def add(self, node: Node, value: torch.Tensor) -> None:
        flat = value.transpose(0, 1).flatten(1)
        low, high = torch.aminmax(flat, dim=1)
        known = self.ends.setdefault(node, _Ends(low, high, torch.zeros_like(low)))
        known.low, known.high = torch.minimum(known.low, low), torch.maximum(known.high, high)
        known.total, known.count = known.total + flat.sum(1), known.count + flat.shape[1]


@dataclass
class _Judged:
    """Per channel, over some samples: damage of its rounding, and how many values come within a step of a clamp."""

    damage: torch.Tensor
    clamped: torch.Tensor
    count: int = 0


def split_channels(module: GraphModule, batches: Batches, inputs: tuple[TensorSpec, ...]) -> int:
    """Give the still channels of depthwise chains copies of the worst channels there, in place.

    Rounding n copies, each an n-th of a step further, errs by an n-th; each still channel goes where that saves most.
    A channel is split only if hardly a value comes near its clamp, so that a shift moves all its values alike. The
    function stays as it is but for those values and for the borders of the depthwise layer, whose zeros are not
    shifted: a copy is off there by a step at most. What a still channel gave goes into the last layer's bias.

    Args:
        module: of an exported program, in float, batch normalization folded, equalized.
        batches: opens the calibration samples.
        inputs: of the program, in order.

    Returns:
        How many copies were made.

    Before: `W[c]·f(d[c] * x[c] + e[c])`.
    After: the sum over i < n of `W[c]/n·f(d[c] * (x[c] + i·s/n) + e[c] - i·s/n·Σd[c])`, s the step of x.
    """
    with torch.no_grad():
        chains = list(chains_of(module))
        seen = _Seen()
        if chains:
            _watch(module, chains, batches, inputs, lambda _, node, values: seen.add(node, values[node]))
        chains = [c for c in chains if _still(c, seen).any() and seen.ends[c.depthwise.input_node].step > 0]
        judged: dict[Node, _Judged] = {}

        def look(chain: Chain, node: Node, values: dict[Node, torch.Tensor]) -> None:
            step = seen.ends[chain.depthwise.input_node].step
            zero = torch.zeros(len(chain.first.weight))
            known = judged.setdefault(chain.made, _Judged(zero, zero))
            if node is chain.first.node:
                near = _near_clamp(module, chain, values[node], step).transpose(0, 1).flatten(1)
                known.clamped, known.count = known.clamped + near.sum(1), known.count + near.shape[1]
            elif node is chain.made:
                known.damage = known.damage + _damage(chain, values[chain.depthwise.input_node], values[node], step)

        if chains:
            _watch(module, chains, lambda: islice(batches(), SAMPLES_JUDGED), inputs, look)
        return sum(_split(chain, seen, judged[chain.made]) for chain in chains)


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


def _near_clamp(module: GraphModule, chain: Chain, value: torch.Tensor, step: float) -> torch.Tensor:
    """Return which values of the first layer its clamp changes, or would change one step further."""
    if chain.clamped is chain.first.node:
        return torch.zeros_like(value, dtype=torch.bool)
    moved = torch.cat((value - step, value + step))
    let_through = torch.as_tensor(call_node(module, chain.clamped, lambda _: moved.clone()))
    return (let_through != moved).reshape(2, *value.shape).any(0)


def _damage(chain: Chain, value: torch.Tensor, made: torch.Tensor, step: float) -> torch.Tensor:
    """Return for each channel the squared error that rounding it alone brings to the last layer's output."""
    error = torch.round(value / step) * step - value
    passed = run_layer(chain.depthwise, chain.depthwise.node, error, chain.depthwise.weight, None, {})
    passed = passed * ((made > made.min()) & (made < made.max()))  # at its ends, a clamp lets no error through
    return passed.square().transpose(0, 1).flatten(1).sum(1) * chain.last.weight.square().flatten(2).sum((0, 2))


def _split(chain: Chain, seen: _Seen, judged: _Judged) -> int:
    still = _still(chain, seen)
    ends = seen.ends[chain.first.node]
    step = seen.ends[chain.depthwise.input_node].step
    fit = ~still & (judged.clamped <= OFTEN * judged.count) & (ends.high - ends.low > step)
    copies = _copies(torch.where(fit, judged.damage, 0.0), torch.nonzero(still).flatten().tolist(), judged.damage.sum())
    if not copies:
        return 0
    layers = (chain.first, chain.depthwise, chain.last)
    first, depthwise, last = (layer.weight.clone() for layer in layers)
    biases = [torch.zeros(len(x.weight)) if x.bias is None else x.bias.clone() for x in layers]
    gave = seen.ends[chain.made]
    for channel, places in copies.items():
        biases[2] += (last[:, places].flatten(2).sum(2) * (gave.total[places] / gave.count)).sum(1)
        last[:, channel] /= len(places) + 1
        for i, place in enumerate(places, start=1):
            shift = i * step / (len(places) + 1)
            first[place], depthwise[place], last[:, place] = first[channel], depthwise[channel], last[:, channel]
            biases[0][place] = biases[0][channel] + shift
            biases[1][place] = biases[1][channel] - shift * depthwise[channel].sum()
    for layer, weight, bias in zip(layers, (first, depthwise, last), biases, strict=True):
        layer.set_weight(weight)
        layer.set_bias(bias)
    return sum(len(places) for places in copies.values())


def _copies(damage: torch.Tensor, free: list[int], total: torch.Tensor) -> dict[int, list[int]]:
    """Return which places each channel's copies take, so that most damage is saved: n copies leave an n²-th of it."""
    copies: dict[int, list[int]] = {}
    for place in free:
        numbers = torch.ones(len(damage))
        for channel, places in copies.items():
            numbers[channel] += len(places)
        saved = damage / numbers**2 - damage / (numbers + 1) ** 2
        channel = int(saved.argmax())
        if saved[channel] < WORTH * total:
            break
        copies.setdefault(channel, []).append(place)
    return copies
