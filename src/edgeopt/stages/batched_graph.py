"""Runs an exported graph on many samples at once, from any node on, whatever batch size it was exported with."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeopt.core.errors import ConversionError
from edgeopt.stages.layers import get_constant

View = Callable[["State", Node, Node, torch.Tensor], torch.Tensor]
SAME = 1e-3


@dataclass
class State:
    """Values that live before one node of the graph.

    Attributes:
        values: what nodes computed; every value that depends on the inputs carries all samples.
        samples: how many are stacked.
        position: index of the node that runs next.
        viewed: what consumers see in place of a value, where that differs; a `View` may keep its results here.
    """

    values: dict[Node, Any]
    samples: int
    position: int = 0
    viewed: dict[Node, torch.Tensor] = field(default_factory=dict)

    def fork(self) -> State:
        """Return a state that can run on without touching this one; no tensor is copied."""
        return State(dict(self.values), self.samples, self.position)


class BatchedGraph:
    """A graph module that was exported with a fixed batch, fed with stacked samples.

    Samples are concatenated along the batch where the graph allows it. Where it does not (a reshape holds the batch
    size, as in transformers and detection heads), each operator is mapped over the samples by `torch.vmap`, and by a
    loop where that does not know the operator. Which of the two is found by trial on the first samples.

    Args:
        module: of an exported program; in-place operators are replaced by their pure twins.

    Raises:
        ConversionError: an operator writes into its input and has no pure twin.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        _make_pure(module)
        needed = _needed(module)
        self.nodes = [n for n in module.graph.nodes if n in needed and n.op not in ("placeholder", "output")]
        self.placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        (self.output,) = (n for n in module.graph.nodes if n.op == "output")
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.varying = _depending(module, self.placeholders)
        self._last_use = {n: max((self.index.get(u, len(self.nodes)) for u in n.users), default=-1) for n in needed}
        self._mapped = False
        self._looped: set[Node] = set()

    @property
    def returned(self) -> list[Node]:
        """The nodes whose values are the outputs, in order."""
        flat, _ = torch.utils._pytree.tree_flatten(self.output.args[0])
        return [n for n in flat if isinstance(n, Node)]

    def settle(self, samples: Sequence[torch.Tensor]) -> None:
        """Find out how samples can be stacked.

        Args:
            samples: one tensor per input of shape (samples, *exported shape); the first three are tried.
        """
        few = [s[:3] for s in samples]
        if len(few[0]) < 2:
            self._mapped = True
            return
        self._mapped = False
        one_by_one = [self.run([s[i : i + 1] for s in few]) for i in range(len(few[0]))]
        try:
            together = self.run(few)
        except (RuntimeError, ValueError, TypeError, IndexError):  # a shape that does not fit: whatever operator met it
            self._mapped = True
            return
        for index, output in enumerate(together):
            wanted = torch.cat([outputs[index] for outputs in one_by_one])
            self._mapped |= output.shape != wanted.shape or not _near(output, wanted)

    def run(self, samples: Sequence[torch.Tensor], view: View | None = None) -> tuple[torch.Tensor, ...]:
        """Return the outputs, each of shape (samples, *exported shape)."""
        state = self.start(samples)
        self.advance(state, len(self.nodes), view)
        return self.outputs(state, view)

    def start(self, samples: Sequence[torch.Tensor]) -> State:
        """Return the state before the first node: inputs are stacked."""
        state = State({}, len(samples[0]))
        for node, stacked in zip(self.placeholders, samples, strict=True):
            state.values[node] = stacked if self._mapped else stacked.flatten(0, 1)
        return state

    def advance(self, state: State, stop: int, view: View | None = None) -> None:
        """Run the nodes before index `stop`; values that no later node reads are dropped."""
        for index in range(state.position, stop):
            node = self.nodes[index]
            state.values[node] = self._perform(node, state, view)
            for read in node.all_input_nodes:
                if read in self.varying and self._last_use[read] <= index:
                    state.values.pop(read, None)
                    state.viewed.pop(read, None)
        state.position = max(state.position, stop)

    def read(self, state: State, node: Node, consumer: Node, view: View | None) -> Any:
        """Return what `consumer` sees of a node's value."""
        value = state.values[node]
        if view is None or not isinstance(value, torch.Tensor):
            return value
        return view(state, node, consumer, value)

    def outputs(self, state: State, view: View | None = None) -> tuple[torch.Tensor, ...]:
        """Return the outputs of a state that has run to the end."""
        found = []
        for node in self.returned:
            value = self.read(state, node, self.output, view)
            if node not in self.varying:
                value = value.expand(state.samples, *value.shape)
            elif not self._mapped:
                value = value.unsqueeze(0) if state.samples == 1 else value.unflatten(0, (state.samples, -1))
            found.append(value)
        return tuple(found)

    def stacked(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """Return a value that depends on the inputs with all samples in front: (samples, everything else)."""
        return value.flatten(1) if value.ndim > 1 else value.reshape(len(value), -1)

    def _perform(self, node: Node, state: State, view: View | None) -> Any:
        if node.op == "get_attr":
            return get_constant(self.module, node)
        seen = {n: self.read(state, n, node, view) for n in node.all_input_nodes}
        if not self._mapped or node not in self.varying or node.target is operator.getitem:
            return _call(node, seen)
        reads = [n for n in seen if n in self.varying]

        def one(*values: Any) -> Any:
            return _call(node, seen | dict(zip(reads, values, strict=True)))

        values = [seen[n] for n in reads]
        if node not in self._looped:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # an operator without a batching rule is looped over inside
                    return torch.vmap(one)(*values)
            except (RuntimeError, ValueError):
                self._looped.add(node)
        count = len(torch.utils._pytree.tree_leaves(values[0])[0])
        pick = torch.utils._pytree.tree_map
        results = [one(*(pick(lambda t, i=i: t[i], v) for v in values)) for i in range(count)]
        return pick(lambda *parts: torch.stack(parts), *results)


def _call(node: Node, seen: Mapping[Node, Any]) -> Any:
    if node.op != "call_function":
        raise ConversionError(f"{node.name}: {node.op} of {node.target} cannot be run apart from its program")
    arguments = torch.fx.node.map_arg(node.args, seen.__getitem__)
    keywords = torch.fx.node.map_arg(node.kwargs, seen.__getitem__)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _needed(module: GraphModule) -> set[Node]:
    """Return the nodes that the outputs depend on; checks of shapes and guards fall away."""
    found: set[Node] = set()
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("output", "placeholder") or any(user in found for user in node.users):
            found.add(node)
    return found


def _depending(module: GraphModule, on: Sequence[Node]) -> set[Node]:
    found = set(on)
    for node in module.graph.nodes:
        if any(read in found for read in node.all_input_nodes):
            found.add(node)
    return found


def _make_pure(module: GraphModule) -> None:
    """Replace `relu_` by `relu` and the like: a value that two runs share must not change.

    Before: `y = relu_(x); z = x + 1`. After: `y = relu(x); z = y + 1`.
    """
    nodes = list(module.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
        twin = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
        written = node.args[0] if node.args else None
        if twin is None or twin is node.target or not isinstance(written, Node):
            raise ConversionError(f"{node.name}: {node.target} writes into its input; export the model without it")
        node.target = twin
        later = {user for user in written.users if order[user] > order[node]}
        written.replace_all_uses_with(node, later.__contains__)
    module.recompile()


def _near(actual: torch.Tensor, wanted: torch.Tensor) -> bool:
    if not wanted.is_floating_point():
        return bool((actual == wanted).all())
    if not torch.isfinite(wanted).all():
        return bool(torch.equal(actual.isfinite(), wanted.isfinite()))
    return bool((actual - wanted).abs().max() <= SAME * wanted.abs().max().clamp(min=1e-6))
