"""The units of a graph: what an integer kernel computes as one, and what can be kept in float as one."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.stages.layers import layers_of

aten = torch.ops.aten

CLAMPS = (aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
BOUNDS = (aten.clamp.default, aten.clamp_.default, aten.clamp_min.default)
FUSED_BOUNDS = ((0, None), (0, 6), (-1, 1))
MATMULS = (aten.matmul.default, aten.bmm.default, aten.baddbmm.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor)
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
CONCATENATIONS = (aten.cat.default, aten.concat.default, aten.concatenate.default)
SOFTMAX = (aten.softmax.int, aten._softmax.default)
POOLED = (aten.mean.dim, aten.adaptive_avg_pool2d.default)
ACTIVATIONS = (
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.hardsigmoid_.default,
    aten.sigmoid.default,
    aten.sigmoid_.default,
    aten.silu.default,
    aten.silu_.default,
    aten.gelu.default,
    aten.tanh.default,
    aten.elu.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    *CLAMPS,
    *BOUNDS,
)
# What moves or picks values and so can keep their scale.
MOVERS = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.dropout.default,
    aten.pixel_shuffle.default,
    aten.channel_shuffle.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    operator.getitem,
)
# Inputs outside these bounds give the same output as the bound, exactly or to within 2e-4 of an output of that size.
DOMAINS: dict[Any, tuple[float, float]] = {
    aten.hardswish.default: (-3.0, math.inf),
    aten.hardswish_.default: (-3.0, math.inf),
    aten.hardsigmoid.default: (-3.0, 3.0),
    aten.hardsigmoid_.default: (-3.0, 3.0),
    aten.sigmoid.default: (-9.0, 9.0),
    aten.sigmoid_.default: (-9.0, 9.0),
    aten.silu.default: (-12.0, math.inf),
    aten.silu_.default: (-12.0, math.inf),
    aten.gelu.default: (-4.0, math.inf),
    aten.tanh.default: (-5.0, 5.0),
}


@dataclass(frozen=True)
class Unit:
    """Nodes that are quantized together or stay in float together.

    Attributes:
        name: of the layer (`layer_name`), else of the first node; `keep_float` takes it, or any of the nodes' names.
        kind: `convolution`, `transposed`, `linear`, `embedding`, `matmul`, `sum`, `product`, `concatenation`,
            `pooling` or `activation`.
        nodes: in the order of execution; only the last one's output is observed.
        operands: activations read; a layer's weight is not among them.
        cost: multiply-accumulates of layers and matmuls, output elements of the rest; embeddings cost nothing.
        channel_axis: of a layer's weight, else None.
    """

    name: str
    kind: str
    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    cost: int
    channel_axis: int | None = None

    @property
    def first(self) -> Node:
        """The node that computes."""
        return self.nodes[0]

    @property
    def last(self) -> Node:
        """The node whose output leaves the unit."""
        return self.nodes[-1]

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies by a constant weight."""
        return self.channel_axis is not None

    def is_named_in(self, names: Collection[str]) -> bool:
        """Whether its name or one of its nodes' is in `names`."""
        return self.name in names or any(node.name in names for node in self.nodes)


def units_of(module: GraphModule) -> tuple[Unit, ...]:
    """Return every unit of the graph of `program.module()`, in the order of execution, each node in one at most."""
    layers = {layer.node: layer for layer in layers_of(module)}
    masks = masks_of(module)
    found: list[Unit] = []
    taken: set[Node] = set()
    for node in module.graph.nodes:
        if node.op != "call_function" or node in taken:
            continue
        unit: Unit | None = None
        if layer := layers.get(node):
            if not (layer.kind == "transposed" and layer.groups > 1):  # its output channels lie on two weight axes
                clamp = () if layer.kind == "embedding" else clamp_after(node)
                operands = () if layer.kind == "embedding" else (layer.input_node,)
                cost = _layer_cost(node, layer.weight, layer.kind)
                unit = Unit(layer.name, layer.kind, (node, *clamp), operands, cost, layer.channel_axis)
        else:
            unit = _other_unit(node, masks)
        if unit is not None:
            found.append(unit)
            taken.update(unit.nodes)
    return tuple(found)


def names_of_units(module: GraphModule, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the units that a user means: by a layer's name, with or without the root `module.`, or by a node's.

    Raises:
        UsageError: a name means no unit.
    """
    by_name: dict[str, str] = {}
    for unit in units_of(module):
        for node in unit.nodes:
            by_name.setdefault(node.name, unit.name)
    for unit in units_of(module):
        by_name[unit.name] = unit.name
        by_name.setdefault(unit.name.removeprefix("module."), unit.name)
    for name in wanted:
        if name not in by_name:
            raise UsageError(
                f"no layer is called {name!r}{did_you_mean(name, by_name)}; `edgeopt sensitivity` lists them"
            )
    return tuple(dict.fromkeys(by_name[name] for name in wanted))


def masks_of(module: GraphModule) -> set[Node]:
    """Return the nodes that depend on no float input and no layer: masks, position numbers, constants."""
    layers = {layer.node for layer in layers_of(module)}
    found: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if not is_float(node):
                found.add(node)
        elif node.op == "get_attr" or (node not in layers and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def is_float(node: Node) -> bool:
    """Whether a node gives one float32 tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def wanting_integers(module: GraphModule, units: Mapping[Node, Unit]) -> set[Node]:
    """Return the units' first nodes whose result some layer, matmul or the graph's output reads, not through float."""
    wanted: set[Node] = set()
    reading: set[Node] = set()  # nodes that take integers
    for node in reversed(list(module.graph.nodes)):
        unit = units.get(node)
        if node.op == "output" or (unit is not None and (unit.is_layer or unit.kind == "matmul")):
            reading.add(node)
        elif unit is not None and any(user in reading for user in unit.last.users):
            wanted.add(node)
            reading.add(node)
        elif node.op == "call_function" and node.target in MOVERS and any(user in reading for user in node.users):
            reading.add(node)
    return wanted


def movers_before(node: Node) -> list[Node]:
    """Return the chain of moving operators that ends in `node`, in the order of execution."""
    chain: list[Node] = []
    while node.op == "call_function" and node.target in MOVERS and isinstance(node.args[0], Node):
        chain.append(node)
        node = node.args[0]
    return chain[::-1]


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's value; () where it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()


def domain_of(node: Node) -> tuple[float, float]:
    """Return the bounds beyond which nothing that reads a node tells its values apart."""
    bounds = []
    for user in node.users:
        gated = gate_after(node)
        if gated is not None and user in gated:
            bounds.append(DOMAINS[aten.hardswish.default])
        else:
            bounds.append(DOMAINS.get(user.target, (-math.inf, math.inf)))
    if not bounds:
        return -math.inf, math.inf
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def clamp_after(node: Node) -> tuple[Node, ...]:
    """Return the clamp that kernels fuse into `node`, if it is its only reader."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function":
        return ()
    user = users[0]
    if user.target in BOUNDS:
        bounds = (*user.args[1:], None, None)[:2]
        return (user,) if bounds in FUSED_BOUNDS else ()
    return (user,) if user.target in CLAMPS else ()


def gate_after(node: Node) -> tuple[Node, ...] | None:
    """Return the nodes of `x * relu6(x + 3) / 6`, hard-swish spelt out, that begin at `x` = `node`."""
    for shifted in node.users:
        if shifted.target not in SUMS or 3 not in shifted.args[1:2]:
            continue
        clamped = _single_user(shifted)
        if clamped is None or not _is_clamp_to_six(clamped):
            continue
        chain = [shifted, clamped]
        here = clamped
        product: Node | None = None
        for _ in range(2):
            following = _single_user(here)
            if following is None:
                break
            chain.append(following)
            here = following
            if following.target in PRODUCTS and node in following.args[:2]:
                product = following
            elif not (following.target is aten.div.Tensor or following.target in PRODUCTS):
                break
        if product is not None:
            return tuple(chain)
    return None


def _other_unit(node: Node, masks: set[Node]) -> Unit | None:
    if not is_float(node) or node in masks:
        return None
    if node.target in MATMULS:
        operands = tuple(a for a in node.args[-2:] if isinstance(a, Node))
        if len(operands) == 2 and not any(o in masks for o in operands) and node.target is not aten.baddbmm.default:
            return Unit(node.name, "matmul", (node,), operands, _size(node) * operands[0].meta["val"].shape[-1])
        if node.target is aten.baddbmm.default and len(node.args) == 3 and not any(o in masks for o in operands):
            return Unit(node.name, "matmul", (node,), operands, _size(node) * operands[0].meta["val"].shape[-1])
        return None
    if node.target in SUMS or node.target in PRODUCTS:
        operands = tuple(a for a in node.args[:2] if isinstance(a, Node))
        if len(operands) != 2 or any(o in masks or not is_float(o) for o in operands) or node.kwargs:
            return None
        kind = "sum" if node.target in SUMS else "product"
        return Unit(node.name, kind, (node, *clamp_after(node)), operands, _size(node))
    if node.target in CONCATENATIONS:
        parts = node.args[0]
        if isinstance(parts, (list, tuple)) and all(isinstance(p, Node) and is_float(p) for p in parts):
            operands = tuple(p for p in parts if isinstance(p, Node))
            if not any(o in masks for o in operands):
                return Unit(node.name, "concatenation", (node,), operands, _size(node))
        return None
    source = node.args[0] if node.args else None
    if isinstance(source, Node) and is_float(source) and source not in masks:
        if node.target in POOLED:
            return Unit(node.name, "pooling", (node,), (source,), _size(node))
        if node.target in ACTIVATIONS:
            return Unit(node.name, "activation", (node,), (source,), _size(node))
    return None


def _layer_cost(node: Node, weight: torch.Tensor, kind: str) -> int:
    if kind == "embedding":
        return 0
    if kind == "transposed":
        source = node.args[0]
        assert isinstance(source, Node)
        return _size(source) * math.prod(weight.shape[1:])
    return _size(node) * math.prod(weight.shape[1:])


def _size(node: Node) -> int:
    return math.prod(int(d) for d in node.meta["val"].shape)


def _single_user(node: Node) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _is_clamp_to_six(node: Node) -> bool:
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default, *BOUNDS):
        return tuple(node.args[1:3]) == (0, 6)
    return node.target is aten.relu6.default
