"""The layers of an exported program's graph module: what every quantization stage walks over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
LINEAR = (aten.linear.default,)
EMBEDDINGS = (aten.embedding.default,)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies its input by a constant weight.

    Attributes:
        node: in the graph of `program.module()`.
        name: of the module that holds the weight, as `features.stem.0`; what users see and `keep_float` names.
        kind: `convolution`, `transposed`, `linear` or `embedding`.
        channel_axis: the weight's axis of output channels; for embeddings, of rows.
        groups: of a convolution, else 1.
    """

    module: GraphModule
    node: Node
    name: str
    kind: str
    channel_axis: int
    groups: int

    @property
    def weight(self) -> torch.Tensor:
        """The float weight, without gradient; assign with `set_weight`."""
        return self.parameter.detach()

    @property
    def parameter(self) -> torch.Tensor:
        """The weight itself, the same object at each call, which gradients may reach."""
        return get_constant(self.module, self.weight_node)

    @property
    def weight_node(self) -> Node:
        """The `get_attr` node of the weight."""
        found = self.node.args[0 if self.kind == "embedding" else 1]
        assert isinstance(found, Node)
        return found

    @property
    def input_node(self) -> Node:
        """The node that produces the layer's input."""
        found = self.node.args[1 if self.kind == "embedding" else 0]
        assert isinstance(found, Node)
        return found

    @property
    def bias_node(self) -> Node | None:
        """The `get_attr` node of the bias, if the layer has a constant one."""
        found = self.node.args[2] if self.kind != "embedding" and len(self.node.args) > 2 else None
        return found if isinstance(found, Node) and found.op == "get_attr" else None

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, if the layer has one."""
        return None if self.bias_node is None else get_constant(self.module, self.bias_node).detach()

    def set_weight(self, value: torch.Tensor) -> None:
        """Replace the weight's values; shape and dtype stay."""
        self.weight.data.copy_(value)

    def set_bias(self, value: torch.Tensor) -> None:
        """Replace the bias, or give the layer one."""
        if (bias := self.bias) is not None:
            bias.data.copy_(value)
            return
        owner, _, leaf = str(self.weight_node.target).rpartition(".")
        parent = self.module.get_submodule(owner) if owner else self.module
        leaf = f"{leaf}_bias"
        name = f"{owner}.{leaf}" if owner else leaf
        parent.register_parameter(leaf, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
        with self.module.graph.inserting_before(self.node):
            added = self.module.graph.get_attr(name)
        added.meta["val"] = value
        self.node.args = (*self.node.args[:2], added, *self.node.args[3:])
        self.module.recompile()


def layers_of(module: GraphModule) -> list[Layer]:
    """Return the layers with constant weights in the order of execution.

    A weight that several nodes share (tied embeddings) gives one layer per node, all of the same name.
    """
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        for kind, targets in (
            ("convolution", CONVOLUTIONS),
            ("transposed", TRANSPOSED),
            ("linear", LINEAR),
            ("embedding", EMBEDDINGS),
        ):
            if node.target not in targets:
                continue
            weight = node.args[0 if kind == "embedding" else 1]
            if isinstance(weight, Node) and weight.op == "get_attr":
                groups = _groups(node, kind)
                axis = 1 if kind == "transposed" else 0
                found.append(Layer(module, node, layer_name(weight, node), kind, axis, groups))
    return found


def layer_name(weight: Node, node: Node) -> str:
    """Return the name of the module that holds a weight; the node's own where the weight stands at the root."""
    owner, _, _ = str(weight.target).rpartition(".")
    return owner or node.name


def is_shared(module: GraphModule, constant: Node) -> bool:
    """Tell whether a `get_attr` node's tensor has more than one use, by this node or by others of its tensor."""
    value = get_constant(module, constant)
    nodes = [n for n in module.graph.nodes if n.op == "get_attr"]
    uses = sum(len(n.users) for n in nodes if n is constant or get_constant_or_none(module, n) is value)
    return uses > 1


def get_constant_or_none(module: GraphModule, node: Node) -> torch.Tensor | None:
    """Return the tensor that a `get_attr` node names, or None where it names something else."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, torch.Tensor) else None


def get_constant(module: GraphModule, node: Node) -> torch.Tensor:
    """Return the tensor that a `get_attr` node names."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def _groups(node: Node, kind: str) -> int:
    position = {"convolution": 6, "transposed": 6}.get(kind)
    if position is None or len(node.args) <= position:
        return 1
    groups = node.args[position]
    assert isinstance(groups, int)
    return groups
