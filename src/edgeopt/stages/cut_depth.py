"""Makes a shallower student of a network's own blocks.

Before: `layers.0 → layers.1 → layers.2 → layers.3`. After, with two blocks: `layers.0 → layers.3`. Keeping a teacher's
own layers spread over its depth is how V. Sanh et al. start "DistilBERT", 2019.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.training import CutDepthOptions


def cut_depth(network: GraphModule, options: CutDepthOptions) -> tuple[GraphModule, dict[str, Any]]:
    """Return a copy with fewer blocks, and a record of which stayed; the given network stays as it is.

    Raises:
        UsageError: no stack of equal blocks is known of this model, or fewer blocks than asked for, or a block to drop
            is none or changes the shape of what it is given.
    """
    made = copy.deepcopy(network)
    if options.drop:
        return _without(made, options.drop)
    stack, blocks = _stack(made)
    kept = _kept(options, len(blocks))
    for number in range(len(blocks)):
        if number not in kept:
            _bridge(blocks[number], f"{stack}.{number}", blocks[number - 1] if number else set())
    _tidy(made)
    names = [f"{stack}.{n}" for n in range(len(blocks))]
    return made, {"stack": stack, "kept": [names[n] for n in kept], "blocks": [len(blocks), len(kept)]}


def _without(network: GraphModule, names: tuple[str, ...]) -> tuple[GraphModule, dict[str, Any]]:
    regions: dict[str, set[Node]] = defaultdict(set)
    for node in network.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            regions[str(path)].add(node)
    for name in names:
        if not regions.get(name):
            raise UsageError(f"cut_depth: the model has no block {name!r}{did_you_mean(name, regions)}")
        _bridge(regions[name], name, set())
    _tidy(network)
    return network, {"dropped": list(names)}


def _tidy(network: GraphModule) -> None:
    network.graph.eliminate_dead_code()
    network.recompile()
    network.delete_all_unused_submodules()


def _kept(options: CutDepthOptions, total: int) -> list[int]:
    if options.keep:
        kept = sorted(set(options.keep))
        if kept[-1] >= total:
            raise UsageError(f"cut_depth: block {kept[-1]} of {total}: they are numbered from 0")
        return kept
    if options.blocks is None:
        raise UsageError("cut_depth: give blocks or keep")
    if options.blocks > total:
        raise UsageError(f"cut_depth: {options.blocks} blocks of {total}")
    if options.blocks == 1:
        return [0]
    return sorted({round(i * (total - 1) / (options.blocks - 1)) for i in range(options.blocks)})


def _stack(network: GraphModule) -> tuple[str, list[set[Node]]]:
    """Return the longest stack of equal blocks: its name, and the nodes of each block."""
    regions: dict[str, dict[int, set[Node]]] = defaultdict(lambda: defaultdict(set))
    for node in network.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            match = re.fullmatch(r"(.+)\.(\d+)", str(path))
            if match:
                regions[match[1]][int(match[2])].add(node)
    found: list[tuple[int, str, list[set[Node]]]] = []
    for name, blocks in regions.items():
        ordered = [blocks[n] for n in sorted(blocks)]
        kinds = {_layers(network, region, f"{name}.{n}") for n, region in sorted(blocks.items())}
        if len(ordered) > 1 and sorted(blocks) == list(range(len(ordered))) and len(kinds) == 1 and kinds != {()}:
            found.append((len(ordered), name, ordered))
    if not found:
        raise UsageError("cut_depth: this model has no stack of blocks with the same layers")
    _, name, ordered = max(found, key=lambda f: f[0])
    return name, ordered


def _layers(network: GraphModule, region: set[Node], block: str) -> tuple[str, ...]:
    """Return names and kinds of a block's layers, relative to the block."""
    names = {str(n.target) for n in region if n.op == "call_module" and str(n.target).startswith(f"{block}.")}
    return tuple(sorted(f"{n.removeprefix(block)}:{type(network.get_submodule(n)).__name__}" for n in names))


def _bridge(region: set[Node], block: str, before: set[Node]) -> None:
    """Let what reads a block's result read what the block was given."""
    results = [n for n in region if any(user not in region for user in n.users) and n.op != "get_attr"]
    if len(results) != 1:
        raise UsageError(f"cut_depth: {block} hands on {len(results)} values, not one")
    (result,) = results
    given = [n for node in region for n in node.all_input_nodes if n not in region and n.op != "get_attr"]
    shape = _shape(result)
    fitting = list(dict.fromkeys(n for n in given if _shape(n) == shape))
    if len(fitting) > 1 and before:
        fitting = [n for n in fitting if n in before] or fitting
    if len(fitting) != 1:
        raise UsageError(f"cut_depth: {block} takes {len(fitting)} values of its result's shape, not one")
    result.replace_all_uses_with(fitting[0], lambda user: user not in region)


def _shape(node: Node) -> str:
    value = node.meta.get("val")
    return str(list(value.shape[1:])) if isinstance(value, torch.Tensor) else ""
