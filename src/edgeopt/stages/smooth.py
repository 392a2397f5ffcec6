"""SmoothQuant: outliers in channels that linear layers read are moved into the layers' weights.

G. Xiao, J. Lin, M. Seznec, H. Wu, J. Demouth, S. Han: "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeopt.core.model import TensorSpec
from edgeopt.stages.attention import value_channels
from edgeopt.stages.channel_extremes import largest_of_channels
from edgeopt.stages.layers import Layer, get_constant, layers_of

aten = torch.ops.aten
PASSING = (aten.dropout.default, aten.contiguous.default, aten.clone.default)
MULTIPLIED = (aten.layer_norm.default, aten.gelu.default)


@dataclass(frozen=True)
class Group:
    """Linear layers that read one tensor, and so share its channels' scales.

    Attributes:
        source: the node that all read.
        layers: the readers.
    """

    source: Node
    layers: tuple[Layer, ...]


def smooth(
    module: GraphModule,
    batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    inputs: tuple[TensorSpec, ...],
    alpha: float,
) -> None:
    """Divide each channel j that linear layers read by s_j and multiply their weights by it, in place.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha). The function that the module computes stays. Where the division goes:

    * layer_norm that only linear layers read: into its weight and bias;
    * attention's weighted sum of values: into the weight and bias of the layer that makes the values;
    * layer_norm that a residual sum reads too, and GELU: a multiplication by 1 / s is inserted before the layers; both
      compute in float, so it costs one pass over the tensor;
    * anything else is left as it is.

    Args:
        module: of an exported program, in float; constants that other nodes read are left alone.
        batches: opens the calibration samples.
        inputs: of the program, in order.
        alpha: between 0 (weights get nothing) and 1 (activations become all alike).

    Before: `layer_norm(x) · Wᵀ`. After: `layer_norm(x; γ / s, β / s) · (W s)ᵀ`.
    """
    groups = groups_of(module)
    if not groups:
        return
    largest = largest_of_channels(module, [g.source for g in groups], batches, inputs)
    with torch.no_grad():
        for group in groups:
            _smooth_group(module, group, largest[group.source], alpha)
    module.graph.lint()
    module.recompile()


def groups_of(module: GraphModule) -> list[Group]:
    """Return the linear layers by what they read, where no layer's weight is shared with another node."""
    found: dict[Node, list[Layer]] = {}
    for layer in layers_of(module):
        if layer.kind == "linear":
            found.setdefault(layer.input_node, []).append(layer)
    return [
        Group(source, tuple(layers))
        for source, layers in found.items()
        if all(is_private(module, layer.weight_node, layer.node) for layer in layers)
    ]


def scales(largest: torch.Tensor, weights: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """Return s for each input channel, its geometric mean 1; 1 for channels that are always zero.

    Args:
        largest: magnitude of each channel.
        weights: `[outputs, inputs]` of the layers that read them.
    """
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    alive = (largest > 1e-8) & (weight > 1e-8)
    s = largest.clamp(min=1e-8) ** alpha / weight.clamp(min=1e-8) ** (1 - alpha)
    if not alive.any():
        return torch.ones_like(s)
    mean = s[alive].log().mean().exp()
    return torch.where(alive, s / mean, torch.ones_like(s)).clamp(1e-4, 1e4)


def _smooth_group(module: GraphModule, group: Group, largest: torch.Tensor, alpha: float) -> None:
    producer = group.source
    while producer.target in PASSING:
        before = producer.args[0]
        assert isinstance(before, Node)
        producer = before
    weights = [layer.weight for layer in group.layers]
    if (affine := _affine(module, producer)) is not None and _only_read_by(producer, group):
        s = scales(largest, weights, alpha)
        for constant in affine:
            constant.data.div_(s)
        _multiply(group, s)
        return
    if (values := value_channels(module, group.source)) is not None and len(group.source.users) == len(group.layers):
        layer, channels = values
        if is_private(module, layer.weight_node, layer.node):
            s = scales(largest, weights, alpha)
            divisor = torch.ones(layer.weight.shape[0])
            divisor[channels] = s
            layer.set_weight(layer.weight / divisor[:, None])
            if (bias := layer.bias) is not None:
                layer.set_bias(bias / divisor)
            _multiply(group, s)
            return
    if producer.target in MULTIPLIED:
        s = scales(largest, weights, alpha)
        insert_product(module, group.source, 1 / s, "smoothing", [layer.node for layer in group.layers])
        _multiply(group, s)


def _multiply(group: Group, s: torch.Tensor) -> None:
    for layer in group.layers:
        layer.set_weight(layer.weight * s)


def insert_product(module: GraphModule, source: Node, factor: torch.Tensor, name: str, readers: list[Node]) -> None:
    """Let `readers` read `source * factor`; the constant is a buffer named after the node and `name`."""
    name = f"{source.name}_{name}"
    module.register_buffer(name, factor)
    with module.graph.inserting_after(source):
        constant = module.graph.get_attr(name)
    with module.graph.inserting_after(constant):
        product = module.graph.call_function(aten.mul.Tensor, (source, constant))
    constant.meta["val"] = factor
    product.meta["val"] = source.meta["val"]
    for reader in readers:
        reader.replace_input_with(source, product)


def _affine(module: GraphModule, norm: Node) -> tuple[torch.Tensor, ...] | None:
    """Return the weight and bias of a layer_norm; None for other nodes and where it has none or shares them."""
    if norm.target is not aten.layer_norm.default:
        return None
    found: list[torch.Tensor] = []
    for argument in norm.args[2:4]:
        if argument is None and found:
            continue
        if not isinstance(argument, Node) or argument.op != "get_attr" or not is_private(module, argument, norm):
            return None
        found.append(get_constant(module, argument))
    return tuple(found) or None


def _only_read_by(producer: Node, group: Group) -> bool:
    readers = {layer.node for layer in group.layers}
    waiting = [producer]
    while waiting:
        for user in waiting.pop().users:
            if user.target in PASSING:
                waiting.append(user)
            elif user not in readers:
                return False
    return True


def is_private(module: GraphModule, constant: Node, reader: Node) -> bool:
    """Whether only one node reads a constant, by whatever `get_attr` node."""
    same = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == constant.target]
    return all(user is reader for n in same for user in n.users)
