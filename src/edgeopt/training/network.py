"""An exported program as a network that can be pruned and trained, and back.

`torch.export` leaves calls of operators on bare weights. Here every weighted operator becomes the layer that it came
from, under the name its weights have, so that batch norm and dropout know training from evaluation, and tools that look
for `nn.Conv2d` find it.

Before: `conv2d(x, features_0_weight, None, [1, 1], [1, 1])`. After: `self.features.0(x)`.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.training.layers_of_operators import LAYERS

PROBE_BATCH = 2


class Probe(nn.Module):
    """Passes a value on unchanged; a forward hook on it sees the value."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the value."""
        return value


def to_network(program: torch.export.ExportedProgram) -> GraphModule:
    """Return a program as a network of layers, in evaluation mode; the program is not changed.

    Its inputs may have any number of samples where the program was exported with an open batch.
    """
    module = copy.deepcopy(program.module())  # else both would share their weights
    assert isinstance(module, GraphModule)
    graph = module.graph
    for node in list(graph.nodes):
        name = str(node.target)
        if (node.op == "call_module" and name.endswith("_guards_fn")) or "_assert" in name:
            node.replace_all_uses_with(None)
            graph.erase_node(node)
    made: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in LAYERS:
            _lift(module, node, made)
    network = GraphModule(module, graph)
    network.graph.eliminate_dead_code()
    network.recompile()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return set_training(network, False)


def set_training(network: GraphModule, mode: bool) -> GraphModule:
    """Switch every layer to training or evaluation."""
    for module in network.modules():
        module.training = mode  # a graph module made from an exported program may refuse train() and eval()
    return network


def to_program(network: GraphModule, inputs: Sequence[TensorSpec]) -> torch.export.ExportedProgram:
    """Export a network for any number of samples; for the number its inputs declare where its graph holds that one.

    Raises:
        ConversionError: torch.export cannot capture it.
    """
    set_training(network, False)
    return export(network, inputs)


def export(module: nn.Module, inputs: Sequence[TensorSpec]) -> torch.export.ExportedProgram:
    """Export a module in evaluation mode with an open batch, or with the declared one where it cannot be opened.

    Raises:
        ConversionError: torch.export cannot capture it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        # A module that fixes its batch raises errors of several unrelated types here: then the batch stays fixed.
        with contextlib.suppress(Exception):
            if all(s.shape and s.shape[0] == inputs[0].shape[0] for s in inputs):
                open_batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
                return torch.export.export(module, examples(inputs, PROBE_BATCH), dynamic_shapes=open_batch)
        try:
            return torch.export.export(module, examples(inputs))
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:300] if lines else type(error).__name__
            raise ConversionError(f"the network cannot be exported: {reason}") from error


def has_open_batch(network: GraphModule) -> bool:
    """Tell whether a network was exported for any number of samples."""
    return all(
        isinstance(n.meta.get("val"), torch.Tensor) and isinstance(n.meta["val"].shape[0], torch.SymInt)
        for n in network.graph.nodes
        if n.op == "placeholder"
    )


def examples(inputs: Sequence[TensorSpec], batch: int | None = None) -> tuple[torch.Tensor, ...]:
    """Return seeded contiguous inputs; `batch` replaces the declared number of samples."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in inputs:
        shape = spec.shape if batch is None else (batch, *spec.shape[1:])
        if spec.dtype.startswith("float"):
            made.append(torch.rand(shape, generator=generator).to(getattr(torch, spec.dtype)))
        else:
            made.append(torch.ones(shape, dtype=getattr(torch, spec.dtype)))
    return tuple(made)


def outputs_of(network: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run a network and return its outputs as a list, whatever structure they come in."""
    flat, _ = torch.utils._pytree.tree_flatten(network(*inputs))
    return list(flat)


def move(network: GraphModule, device: torch.device) -> GraphModule:
    """Move a network, and the tensors that its graph makes itself, to a device."""
    for node in network.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    network.recompile()
    return network.to(device)


def layers_named(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of some kinds in the order of the graph."""
    seen: set[str] = set()
    assert isinstance(network, GraphModule)
    for node in network.graph.nodes:
        if node.op == "call_module" and str(node.target) not in seen:
            layer = network.get_submodule(str(node.target))
            if isinstance(layer, kinds):
                seen.add(str(node.target))
                yield str(node.target), layer


def observe(network: GraphModule, nodes: Sequence[Node]) -> list[Probe]:
    """Put a probe behind each value of a network's graph; readers see the probe's result."""
    probes = []
    for node in nodes:
        probe = Probe()
        name = f"probe_{len([n for n in network._modules if n.startswith('probe_')])}"
        network.add_submodule(name, probe)
        with network.graph.inserting_after(node):
            call = network.graph.call_module(name, (node,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call, partial(operator.is_not, call))
        probes.append(probe)
    network.recompile()
    return probes


def without_probes(network: GraphModule) -> GraphModule:
    """Remove all probes again."""
    for node in list(network.graph.nodes):
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), Probe):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    network.recompile()
    network.delete_all_unused_submodules()
    return network


def _lift(module: GraphModule, node: Node, made: dict[str, tuple[nn.Module, tuple[Any, ...]]]) -> None:
    bound = _bound(node)
    place = LAYERS[node.target](partial(_tensor, module), bound)
    if place is None:
        return
    layer, weight, inputs, settings = place
    name = _place(node, weight, layer)
    if name in made:
        known, same = made[name]
        if type(known) is not type(layer) or same != settings:
            return  # two different operators on one weight: they stay as they are
    else:
        _put(module, name, layer)
        made[name] = layer, settings
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, tuple(inputs))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _bound(node: Node) -> dict[str, Any]:
    """Return a node's arguments by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        else:
            default = argument.default_value if argument.has_default_value() else None
            values[argument.name] = node.kwargs.get(argument.name, default)
    return values


def _place(node: Node, weight: Node | None, layer: nn.Module) -> str:
    """Return the name of a new layer: where its weight is, else one of its own."""
    if weight is not None:
        owner, _, leaf = str(weight.target).rpartition(".")
        if owner and leaf == "weight":
            return owner
        return f"{weight.target}_layer".replace(".", "_") if not owner else f"{owner}.{leaf}_layer"
    return f"{type(layer).__name__.lower()}_{node.name}"


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    *path, leaf = name.split(".")
    parent = module
    for part in path:
        if part not in parent._modules:
            parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    old = parent._modules.get(leaf)
    if old is not None:
        for child, module_below in old._modules.items():
            layer._modules.setdefault(child, module_below)
        for key, parameter in old._parameters.items():
            if key not in layer._parameters and key not in layer._buffers:
                layer.register_parameter(key, parameter)
        for key, buffer in old._buffers.items():
            if key not in layer._parameters and key not in layer._buffers:
                layer.register_buffer(key, buffer)
    parent.add_module(leaf, layer)


def _tensor(module: GraphModule, node: Any) -> torch.Tensor | None:
    """Return the tensor that a `get_attr` node stands for."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None
