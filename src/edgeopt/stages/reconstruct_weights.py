"""Rounding up or down learned for a block of layers at once, so that the block's output stays near its float output.

M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort: "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020; block by block as in Y. Li et al.: "BRECQ: Pushing the Limit of Post-Training Quantization by
Block Reconstruction", ICLR 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeopt.core.model import TensorSpec
from edgeopt.stages.layers import Layer, layers_of
from edgeopt.stages.round_weights import Grid, recoverable_scale
from edgeopt.stages.unfold import rows_of, weight_of_rows
from edgeopt.stages.walk import (
    MAX_BYTES,
    Batches,
    attribute_of,
    call_node,
    first_samples,
    last_uses,
    peak_bytes,
    quantized,
    run_layer,
)
from edgeopt.worker import report

FEWEST_LAYERS, MOST_LAYERS = 3, 8
STEPS = 200
BATCH = 4
RATE = 0.02
WEIGHT_OF_DECISION = 0.01
STRETCH = 1.1


@dataclass(frozen=True)
class Block:
    """Nodes that run one after another.

    Attributes:
        nodes: in order.
        kept: varying values that later blocks read.
    """

    nodes: tuple[Node, ...]
    kept: tuple[Node, ...]


class SoftWeight:
    """A weight whose values lie between two neighbours of its grid, by a learned share."""

    def __init__(self, layer: Layer, grid: Grid) -> None:
        self.layer = layer
        rows = rows_of(layer).detach()
        self._rows_shape = rows.shape
        blocks = rows.reshape(*rows.shape[:2], -1, grid.block or rows.shape[2])
        largest, end = blocks.abs().max(-1, keepdim=True)
        self._scale = recoverable_scale(largest, grid.largest)
        self._grid = grid
        self._floor = torch.floor(blocks / self._scale)
        share = (blocks / self._scale - self._floor).clamp(0.01, 0.99)
        self.logits = torch.logit((share + (STRETCH - 1) / 2) / STRETCH).requires_grad_()
        at_end = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, end, True)
        self._fixed = at_end & (blocks != 0)
        self._end = grid.largest * blocks.sign()

    def share(self) -> torch.Tensor:
        """Return the share of the upper neighbour: a sigmoid, stretched and cut to 0…1."""
        return (torch.sigmoid(self.logits) * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)

    def value(self, *, decided: bool = False) -> torch.Tensor:
        """Return the weight, each value at one neighbour where `decided`."""
        share = self.share()
        share = (share >= 0.5).float() if decided else share
        integers = (self._floor + share).clamp(-self._grid.largest, self._grid.largest)
        integers = torch.where(self._fixed, self._end, integers)
        return weight_of_rows(self.layer, (integers * self._scale).reshape(self._rows_shape))

    def indecision(self, sharpness: float) -> torch.Tensor:
        """Return how far the shares are from 0 and 1, the less strictly the larger `sharpness`."""
        return (1 - (2 * self.share() - 1).abs().pow(sharpness)).mean()


def reconstruct_weights(
    module: GraphModule,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    grid_of_layer: Callable[[Layer], Grid | None],
    prepared: GraphModule | None = None,
    *,
    max_samples: int = 64,
    steps: int = STEPS,
    seed: int = 0,
) -> None:
    """Round the layers of `module` block by block in the order of execution, in place.

    Ensures what `round_weights` ensures: every weight an integer times a scale that can be read from the weights.

    Args:
        module: in float.
        batches: opens the samples.
        inputs: of the program.
        grid_of_layer: gives a layer's grid, or None for a layer that stays in float.
        prepared: the same graph with observers that have seen the samples, whose ranges quantize activations.
        max_samples: learned from, at most; fewer where their activations would exceed 1 GiB.
        steps: of Adam for each block.
        seed: of the choice of samples.
    """
    graph_module = copy.deepcopy(module) if prepared is None else prepared
    nodes = [n for n in graph_module.graph.nodes if n.op != "output"]
    layers = {layer.node.name: layer for layer in layers_of(module)}
    last_use = last_uses(list(graph_module.graph.nodes))
    count = min(max_samples, max(1, MAX_BYTES // max(1, 2 * peak_bytes(nodes, last_use))))
    samples = first_samples(batches, inputs, count)
    constant = _constants(graph_module, nodes)
    names = [n for n in nodes if n.op == "placeholder"]
    now: list[dict[Node, Any]] = [dict(zip(names, s.values(), strict=True)) for s in samples]
    in_float = [dict(env) for env in now]
    generator = torch.Generator().manual_seed(seed)
    done: set[str] = set()
    blocks = _blocks([n for n in nodes if n not in constant and n not in names], layers, constant)
    for number, block in enumerate(blocks, start=1):
        report(f"learning the rounding of block {number} of {len(blocks)}")
        run = _Runner(graph_module, block, constant, layers)
        with torch.no_grad():
            in_float = [run(env, {}, quantize=False) for env in in_float]
        soft: dict[str, SoftWeight] = {}
        for node in block.nodes:
            layer = layers.get(node.name)
            grid = grid_of_layer(layer) if layer is not None else None
            if layer is None or grid is None or layer.kind == "embedding" or str(layer.weight_node.target) in done:
                continue
            done.add(str(layer.weight_node.target))
            soft[node.name] = SoftWeight(layer, grid)
        if soft:
            _learn(run, soft, now, in_float, block.kept, steps, generator)
            for weight in soft.values():
                weight.layer.set_weight(weight.value(decided=True).detach())
        with torch.no_grad():
            now = [run(env, {}, quantize=True) for env in now]


def _learn(
    run: _Runner,
    soft: dict[str, SoftWeight],
    now: list[dict[Node, Any]],
    targets: list[dict[Node, Any]],
    kept: Sequence[Node],
    steps: int,
    generator: torch.Generator,
) -> None:
    compared = [k for k in kept if k in run.made and _is_float(targets[0][k])]
    power = {k: sum(float(t[k].pow(2).mean()) for t in targets) / len(targets) + 1e-12 for k in compared}
    optimizer = torch.optim.Adam([w.logits for w in soft.values()], lr=RATE)
    for step in range(steps):
        chosen = torch.randint(len(now), (min(BATCH, len(now)),), generator=generator).tolist()
        optimizer.zero_grad()
        weights = {name: w.value() for name, w in soft.items()}
        loss = torch.zeros(())
        for i in chosen:
            out = run(now[i], weights, quantize=True)
            for k in compared:
                loss = loss + (out[k] - targets[i][k]).pow(2).mean() / power[k] / len(chosen)
        if step >= steps // 5:
            progress = (step - steps // 5) / max(1, steps - steps // 5)
            sharpness = 20 - 18 * progress
            loss = loss + WEIGHT_OF_DECISION * torch.stack([w.indecision(sharpness) for w in soft.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class _Runner:
    """Runs one block on one sample."""

    def __init__(self, module: GraphModule, block: Block, constant: dict[Node, Any], layers: dict[str, Layer]) -> None:
        self._module = module
        self._block = block
        self._constant = constant
        self._layers = layers
        self.made = set(block.nodes)

    def __call__(self, env: dict[Node, Any], weights: dict[str, torch.Tensor], *, quantize: bool) -> dict[Node, Any]:
        """Return what later blocks read; `weights` replace those of layers by node names."""
        values = dict(env)
        for node in self._block.nodes:
            values[node] = self._run(node, values, weights, quantize)
        return {k: values[k] for k in self._block.kept}

    def _run(self, node: Node, values: dict[Node, Any], weights: dict[str, torch.Tensor], quantize: bool) -> Any:
        layer = self._layers.get(node.name)
        if layer is not None and quantize:
            source = node.args[1 if layer.kind == "embedding" else 0]
            assert isinstance(source, Node)
            weight = weights.get(node.name, layer.weight)
            return run_layer(layer, node, values[source], weight, layer.bias, self._constant)
        if node.op == "call_module":
            observer = self._module.get_submodule(str(node.target))
            if hasattr(observer, "calculate_qparams"):
                assert isinstance(node.args[0], Node)
                value = values[node.args[0]]
                return quantized(observer, [value])[0] if quantize else value
        return call_node(self._module, node, lambda n: values[n] if n in values else self._constant[n])


def _constants(module: GraphModule, nodes: list[Node]) -> dict[Node, Any]:
    constant: dict[Node, Any] = {}
    for node in nodes:
        if node.op == "get_attr":
            constant[node] = attribute_of(module, str(node.target))
        elif node.op != "placeholder" and all(a in constant for a in node.all_input_nodes) and node.users:
            with torch.no_grad():
                constant[node] = call_node(module, node, constant.__getitem__)
    return constant


def _blocks(nodes: list[Node], layers: dict[str, Layer], constant: dict[Node, Any]) -> list[Block]:
    """Cut where one value alone goes on, after at least three layers; after eight wherever it is."""
    nodes = [n for n in nodes if n.users]  # guards have none
    place = {n: i for i, n in enumerate(nodes)}
    end = {n: max((place.get(u, len(nodes)) for u in n.users), default=-1) for n in nodes}
    blocks: list[Block] = []
    current: list[Node] = []
    count = 0
    inputs = {a for n in nodes for a in n.all_input_nodes if a not in place and a not in constant}
    reach = {a: max(place.get(u, len(nodes)) for u in a.users) for a in inputs} | end
    for i, node in enumerate(nodes):
        current.append(node)
        count += node.name in layers
        kept = tuple(n for n, last in reach.items() if last > i and (n in inputs or place[n] <= i))
        follower = nodes[i + 1] if i + 1 < len(nodes) else None
        parts = follower is None or _parts(count, kept, follower, layers)
        if parts:
            blocks.append(Block(tuple(current), kept))
            current, count = [], 0
    return blocks


def _parts(count: int, kept: tuple[Node, ...], follower: Node, layers: dict[str, Layer]) -> bool:
    if follower.name not in layers:
        return False
    return (count >= FEWEST_LAYERS and len(kept) == 1) or count >= MOST_LAYERS


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
