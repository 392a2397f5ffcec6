"""Channels that can only go together, and their removal.

Which layers depend on a channel is found by Torch-Pruning's dependency graph: G. Fang et al.: "DepGraph: Towards Any
Structural Pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.fx import GraphModule, Node
from torch_pruning import ops

from edgeopt.core.model import TensorSpec
from edgeopt.stages.prune_shapes import Shapes, repair, shapes_of
from edgeopt.training.network import examples

VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)
Plan = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Member:
    """One layer's channels in a group.

    Attributes:
        layer: its name.
        side: whether the layer's outputs or inputs are concerned.
        channels: of the layer.
        roots: the group's channel that each belongs to.
    """

    layer: str
    side: str
    channels: torch.Tensor
    roots: torch.Tensor


@dataclass(frozen=True)
class Group:
    """Channels that are removed together in every member.

    Attributes:
        name: the layer whose output channels number the group's.
        channels: how many there are.
        units: of shape (units, channels per unit): channels that go together, as those of one head.
        members: all layers concerned.
        fixed: why nothing of it can be removed; empty where something can.
    """

    name: str
    channels: int
    units: torch.Tensor
    members: tuple[Member, ...]
    fixed: str = ""


@dataclass
class Structure:
    """A network's groups, and what is needed to remove channels from copies of it."""

    network: GraphModule
    inputs: tuple[TensorSpec, ...]
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Trace the network."""
        self.examples = examples(self.inputs, 2)
        self.shapes: Shapes = shapes_of(self.network, self.examples)
        self.head_views = _head_widths(self.network, self.shapes)
        self.answers = _that_answer(self.network)

    def find(self, keep: Collection[str], heads: bool) -> list[Group]:
        """Return all groups, those that must stay as they are with the reason."""
        graph = _dependencies(self.network, self.examples)
        names = {module: name for name, module in self.network.named_modules()}
        roots = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d)
        for group in graph.get_all_groups(root_module_types=roots):
            self.groups.append(self._described(graph, group, names, keep, heads))
        return self.groups

    def pruned(self, plan: Plan) -> GraphModule:
        """Return a copy without the channels of a plan, by the names of groups; constant shapes are mended.

        Raises:
            ValueError, RuntimeError: the graph holds a shape that does not follow.
        """
        network = copy.deepcopy(self.network)
        graph = _dependencies(network, self.examples)
        by_name = {g.name: g for g in self.groups}
        for name, channels in plan.items():
            if channels:
                layer = network.get_submodule(name)
                pruner = graph.get_pruner_of_module(layer)
                group = graph.get_pruning_group(layer, pruner.prune_out_channels, sorted(channels))
                if not graph.check_pruning_group(group):
                    raise ValueError(f"{by_name[name].name} would lose all its channels")
                group.prune()
        repair(network, self.examples, self.shapes, set(self.head_views))
        return network

    def _described(self, graph: Any, group: Any, names: Mapping[Any, str], keep: Collection[str], heads: bool) -> Group:
        root = group[0].dep.target.module
        channels = graph.get_out_channels(root)
        reasons, members, tied = [], [], {1}
        blocks = {1}
        for item in group:
            layer, handler = item.dep.target.module, item.dep.handler
            if isinstance(layer, ops._OutputOp) or names.get(layer) in self.answers:
                if graph.is_out_channel_pruning_fn(handler):
                    reasons.append("gives the model's outputs")
            elif isinstance(layer, nn.Parameter):
                reasons.append("is added to a parameter without a layer")
            elif isinstance(layer, (nn.Embedding, nn.LayerNorm)):
                reasons.append(f"is as wide as a {type(layer).__name__} on the residual stream")
            if not isinstance(layer, nn.Module) or layer not in names:
                continue
            name = names[layer]
            out = graph.is_out_channel_pruning_fn(handler)
            if name in keep and out:
                reasons.append("was asked to stay")
            if isinstance(layer, nn.GroupNorm):
                tied.add(layer.num_groups)
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and 1 < layer.groups < layer.in_channels:
                tied.add(layer.groups)
            if out and name in self.head_views:
                blocks.add(self.head_views[name])
            if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
                reasons.append("is a transposed convolution in groups")
            members.append(
                Member(name, "out" if out else "in", torch.tensor(list(item.idxs)), torch.tensor(_roots(item)))
            )
        units, reason = _units(channels, sorted(tied), sorted(blocks), heads)
        reasons += [reason] if reason else []
        return Group(names[root], channels, units, tuple(members), reasons[0] if reasons else "")


def _roots(item: Any) -> list[int]:
    roots = getattr(item, "root_idxs", None)
    return list(item.idxs if roots is None else roots)


def _units(channels: int, tied: list[int], blocks: list[int], heads: bool) -> tuple[torch.Tensor, str]:
    """Return which channels go together: the same place of every convolution group, or all of a head."""
    single = torch.arange(channels)[:, None]
    if len(blocks) > 1:
        if not heads:
            return single, "is an attention head, which were asked to stay"
        if len(blocks) > 2 or len(tied) > 1 or blocks[-1] == 0 or channels % blocks[-1]:
            return single, "is split in a way that is no plain attention head"
        return torch.arange(channels).reshape(-1, blocks[-1]), ""
    if len(tied) > 2 or channels % tied[-1]:
        return single, "belongs to convolution groups of different sizes"
    return torch.arange(channels).reshape(tied[-1], -1).T, ""


def _dependencies(network: GraphModule, inputs: tuple[torch.Tensor, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters without a layer, which are handled
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                network, list(inputs), forward_fn=lambda module, given: module(*given), verbose=False
            )


def _head_widths(network: GraphModule, shapes: Shapes) -> dict[str, int]:
    """Return for each linear layer whose output is split into heads how wide one is; 0 where it is split otherwise.

    Before: `view(query(x), [batch, tokens, heads, width])`. Found: `{"query": width}`.
    """
    found: dict[str, int] = {}
    for node in network.graph.nodes:
        if node.op != "call_module" or not isinstance(network.get_submodule(str(node.target)), nn.Linear):
            continue
        width = shapes[node.name][-1]
        for user in node.users:
            if user.target not in VIEWS or not isinstance(user, Node):
                continue
            split = _last_factors(shapes[user.name], width)
            if len(split) > 1:
                found[str(node.target)] = split[1] if len(split) == 2 else 0
    return found


def _that_answer(network: GraphModule) -> set[str]:
    """Return the layers whose outputs are the network's own."""
    (output,) = (n for n in network.graph.nodes if n.op == "output")
    return {str(n.target) for n in output.all_input_nodes if n.op == "call_module"}


def _last_factors(shape: Sequence[int], width: int) -> list[int]:
    """Return the last sizes of a shape whose product is `width`; empty where there are none."""
    taken: list[int] = []
    product = 1
    for size in reversed(shape):
        if product == width:
            break
        taken.insert(0, size)
        product *= size
    return taken if product == width else []
