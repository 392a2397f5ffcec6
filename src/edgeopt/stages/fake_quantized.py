"""One graph, calibrated once, in which each unit can be quantized or left in float without preparing it again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeopt.core.errors import ConversionError
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.batched_graph import BatchedGraph, State, View
from edgeopt.stages.claims import Claim, Step, claims_of, covering, observer_of, step_of, told
from edgeopt.stages.exact_sums import fix_scales
from edgeopt.stages.fold_batch_norm import fold_batch_norm
from edgeopt.stages.layers import Layer, layers_of
from edgeopt.stages.quantizer import ANNOTATION, EdgeQuantizer
from edgeopt.stages.round_weights import Grid, grid_of
from edgeopt.stages.units import units_of
from edgeopt.stages.weight_grid import on_grid


@dataclass(frozen=True)
class Unit:
    """What is quantized as one; layers that share their weight (tied embeddings) are one.

    Attributes:
        name: what `QuantizationOptions.keep_float` takes.
        kind: as `edgeopt.stages.units.Unit` has it.
        macs: multiply-accumulates of layers and matmuls for one exported batch.
        parameters: weights and biases.
        end: node whose value is the unit's result.
    """

    name: str
    kind: str
    macs: int
    parameters: int
    end: Node


@dataclass
class Configuration:
    """Which values are quantized, and how, when some of the units are; its `view` is given to a `BatchedGraph`."""

    weights: dict[tuple[Node, Node], Callable[[], torch.Tensor]] = field(default_factory=dict)
    whole: dict[Node, Step] = field(default_factory=dict)
    edges: dict[tuple[Node, Node], Step] = field(default_factory=dict)

    def view(self, state: State, node: Node, consumer: Node, value: torch.Tensor) -> torch.Tensor:
        """Return what `consumer` sees of a node's value."""
        if (weight := self.weights.get((node, consumer))) is not None:
            return weight()
        step = self.whole.get(node) or self.edges.get((node, consumer))
        if step is None:
            return value
        if node not in state.viewed:
            state.viewed[node] = step.apply(value)
        return state.viewed[node]


class FakeQuantized:
    """A float program whose units are quantized in simulation, any of them at a time.

    Where values are quantized is `EdgeQuantizer`'s decision, made anew for each set of units kept in float: the input
    of such a unit stays quantized when the unit before it is, and the values of a concatenation share one scale only
    while it is quantized itself.

    Args:
        program: in float; it is not changed.
        scheme: `static`, `dynamic` or `weight_only`.
        options: estimator, block size and units that always stay in float.

    Attributes:
        steps: grid of each activation, by the node that makes it and whether its maker's wish (True) or its readers'
            counts; set by `calibrate`.
        joint_steps: grid of the values that share one when everything is quantized.

    Raises:
        ConversionError: nothing can be quantized, or the scheme is none of these.
    """

    def __init__(self, program: torch.export.ExportedProgram, scheme: Scheme, options: QuantizationOptions) -> None:
        if scheme.kind not in ("static", "dynamic", "weight_only"):
            raise ConversionError(f"{scheme.kind} quantization has no units to switch; measure static_wi8_ai8 instead")
        self.scheme = scheme
        self.options = options
        self.module = _own_copy(program.module())
        fold_batch_norm(self.module)
        self.graph = BatchedGraph(self.module)
        self._layers = {layer.node: layer for layer in layers_of(self.module)}
        self._owners = {node: unit.name for unit in units_of(self.module) for node in unit.nodes}
        self._claims = self._annotate(())
        self.units = self._units()
        if not self.units:
            raise ConversionError(f"{scheme.kind} quantization: the model has no layer that can be quantized")
        self.steps: dict[tuple[Node, bool], Step] = {}
        self.joint_steps: dict[frozenset[Node], Step] = {}
        self._weights: dict[Node, torch.Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the units, in the order of execution."""
        return tuple(u.name for u in self.units)

    def calibrate(self, batches: Iterable[Sequence[torch.Tensor]], weights: View | None = None) -> None:
        """Observe the activations of the float graph.

        Args:
            batches: one tensor per input of shape (samples, *exported shape); the first decides how samples stack.
            weights: shows constants as the graph shall see them; the float ones where None.
        """
        observers = self._new_observers()
        joint = self._joint_observers()
        of: dict[Node, list[Any]] = {}
        for (node, _), observer in observers.items():
            if not any(observer is o for o in of.setdefault(node, [])):
                of[node].append(observer)
        for group, observer in joint.items():
            for node in group:
                of[node].append(observer)

        def observe(state: State, node: Node, consumer: Node, value: torch.Tensor) -> torch.Tensor:
            if node.op == "get_attr":
                return value if weights is None else weights(state, node, consumer, value)
            if node not in state.viewed:
                state.viewed[node] = value
                for one in value.chunk(state.samples) if node in of else ():  # an observer looks at part of each call
                    for observer in of[node]:
                        observer(one)
            return value

        with torch.no_grad():
            for index, samples in enumerate(batches):
                if index == 0:
                    self.graph.settle(samples)
                if self.scheme.kind == "static":
                    self.graph.run(samples, observe)
            if self.scheme.kind == "static":
                fix_scales(self._sums(observers))
            self.steps = {key: step_of(observer, self.scheme) for key, observer in observers.items()}
            self.joint_steps = {group: step_of(observer, self.scheme) for group, observer in joint.items()}

    def quantized(self, keep_float: Collection[str] = ()) -> Configuration:
        """Return the simulation of the network with all units quantized but those named."""
        return self._configuration(self._annotate(keep_float) if keep_float else self._claims)

    def only(self, name: str) -> Configuration:
        """Return the simulation of the network with one unit quantized: what it reads, its weight and its result."""
        return self._configuration([c for c in self._claims if self._owner(c.node) == name])

    def first_difference(self, a: Configuration, b: Configuration) -> int:
        """Return the index of the first node that sees another value in `b` than in `a`."""
        index, end = self.graph.index, len(self.graph.nodes)
        places = [end]
        for node in a.whole.keys() | b.whole.keys():
            if a.whole.get(node) != b.whole.get(node):
                places += [index.get(user, end) for user in node.users]
        for edge in a.edges.keys() | b.edges.keys():
            if a.edges.get(edge) != b.edges.get(edge):
                places.append(index.get(edge[1], end))
        places += [index.get(edge[1], end) for edge in a.weights.keys() ^ b.weights.keys()]
        return min(places)

    def layers(self) -> list[tuple[Layer, Grid]]:
        """Return the layers whose weights are quantized, with their grids; a shared weight comes once per layer."""
        return [(layer, self._grid(layer)) for c in self._claims if (layer := self._weight_layer(c)) is not None]

    def _annotate(self, keep_float: Collection[str]) -> list[Claim]:
        for node in self.module.graph.nodes:
            node.meta.pop(ANNOTATION, None)
        kept = {*self.options.keep_float, *keep_float}
        EdgeQuantizer(self.scheme, estimator=self.options.estimator, keep_float=kept).annotate(self.module)
        return [claim for claim in claims_of(self.module) if self._counts(claim)]

    def _counts(self, claim: Claim) -> bool:
        if self._weight_layer(claim) is not None or self.scheme.kind == "static":
            return True
        return self.scheme.kind == "dynamic" and claim.consumer in self._layers

    def _weight_layer(self, claim: Claim) -> Layer | None:
        """Return the layer whose weight is claimed, or None for a claim on an activation."""
        layer = self._layers.get(claim.consumer) if claim.consumer is not None else None
        return layer if layer is not None and layer.weight_node is claim.value else None

    def _grid(self, layer: Layer) -> Grid:
        return grid_of(layer, self.scheme, self.options)

    def _owner(self, node: Node) -> str:
        """Return the unit that a node belongs to; what only moves values belongs to the unit that made them."""
        here = node
        while here not in self._owners and here.args and isinstance(here.args[0], Node):
            here = here.args[0]
        return self._owners.get(here, node.name)

    def _units(self) -> tuple[Unit, ...]:
        claimed = {self._owner(c.node) for c in self._claims}
        found: dict[str, Unit] = {}
        for unit in units_of(self.module):
            layer = self._layers.get(unit.first)
            macs = unit.cost if unit.is_layer or unit.kind == "matmul" else 0
            if unit.name in found:
                before = found[unit.name]
                found[unit.name] = Unit(unit.name, before.kind, before.macs + macs, before.parameters, before.end)
            elif unit.name in claimed:
                parameters = 0 if layer is None else layer.weight.numel()
                parameters += 0 if layer is None or layer.bias is None else layer.bias.numel()
                found[unit.name] = Unit(unit.name, unit.kind, macs, parameters, unit.last)
        return tuple(found.values())

    def _new_observers(self) -> dict[tuple[Node, bool], Any]:
        """Return an observer of each value as its maker has it and as its readers do; one for both where they agree."""
        found: dict[tuple[Node, bool], Any] = {}
        made: dict[Node, dict[str, Any]] = {}
        for claim in self._claims:
            key = (claim.value, claim.consumer is None)
            if self._weight_layer(claim) is None and key not in found:
                kind = told(claim.spec)
                same = made.get(claim.value, {}).get(kind)
                found[key] = same if same is not None else observer_of(claim.spec)
                made.setdefault(claim.value, {})[kind] = found[key]
        return found

    def _sums(self, observers: dict[tuple[Node, bool], Any]) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the observers of both operands and of the result of each sum, its maker's where a value has two."""
        for unit in units_of(self.module):
            found = [observers.get((n, True)) or observers.get((n, False)) for n in (*unit.operands, unit.last)]
            if unit.kind == "sum" and all(o is not None for o in found):
                first, second, result = found
                yield first, second, result

    def _weight_of(self, layer: Layer) -> Callable[[], torch.Tensor]:
        node = layer.weight_node

        def quantized() -> torch.Tensor:
            if node not in self._weights:
                self._weights[node] = on_grid(layer, layer.weight.detach(), self._grid(layer))
            return self._weights[node]

        return quantized

    def _configuration(self, claims: list[Claim]) -> Configuration:
        found = Configuration()
        active = []
        for claim in claims:
            layer = self._weight_layer(claim)
            if layer is None:
                active.append(claim)
            else:
                found.weights[claim.value, layer.node] = self._weight_of(layer)
        steps = self._shared(active)
        for claim in active:
            if claim.consumer is None:
                found.whole[claim.value] = steps[claim.value]
            else:
                found.edges[claim.value, claim.consumer] = steps[claim.value]
        return found

    def _joint_observers(self) -> dict[frozenset[Node], Any]:
        """Return one observer for each set of values that share a grid when everything is quantized."""
        found: dict[frozenset[Node], Any] = {}
        active = [c for c in self._claims if self._weight_layer(c) is None]
        for group in _groups(active):
            if len(group) > 1:
                specs = [c.spec for c in active if c.value in group]
                own = [c.spec for c in active if c.value in group and c.shares_with is None]
                found[group] = observer_of((own or specs)[0])
        return found

    def _shared(self, active: list[Claim]) -> dict[Node, Step]:
        """Return the step of each claimed value; values that a unit ties together get one that covers them all.

        As in a PT2E graph, its maker's observer counts for readers too.
        """
        whole = {c.value for c in active if c.consumer is None}
        found: dict[Node, Step] = {}
        for group in _groups(active):
            step = self.joint_steps.get(group) or covering([self.steps[m, m in whole] for m in group])
            found |= dict.fromkeys(group, step)
        return found


def _groups(active: list[Claim]) -> list[frozenset[Node]]:
    """Return the sets of claimed values that share a grid."""
    parent = {c.value: c.value for c in active}

    def root(node: Node) -> Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for claim in active:
        if claim.shares_with is not None and claim.shares_with in parent:
            parent[root(claim.value)] = root(claim.shares_with)
    groups: dict[Node, set[Node]] = {}
    for node in parent:
        groups.setdefault(root(node), set()).add(node)
    return [frozenset(g) for g in groups.values()]


def _own_copy(module: torch.nn.Module) -> GraphModule:
    """Give the module tensors of its own; tied ones stay tied."""
    assert isinstance(module, GraphModule)
    copies: dict[int, torch.nn.Parameter | torch.Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is None:
                    continue
                if id(value) not in copies:
                    copy = value.detach().clone()
                    is_parameter = isinstance(value, torch.nn.Parameter)
                    copies[id(value)] = torch.nn.Parameter(copy, requires_grad=False) if is_parameter else copy
                store[name] = copies[id(value)]  # type: ignore[assignment]
    return module
