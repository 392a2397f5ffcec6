"""Turns a PyMIL function into a flat plan that runs fast and often.

Every variable gets a numbered slot. Constants are decoded once, parameters that are Python values are converted once,
and what depends on constants alone is computed once. A step names the slots it reads, those it writes, and those that
nobody reads afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil.types.symbolic import is_symbolic

from edgeopt.core.errors import ArtifactError, UnsupportedOpError
from edgeopt.mil.constexpr import decode, is_constant
from edgeopt.mil.fallback import evaluate, has_value_inference
from edgeopt.mil.integer_layers import IntegerLayer, integer_layers, unrounded
from edgeopt.mil.ops import IGNORED, OPS
from edgeopt.mil.parameters import call_late, converters_of, is_static, same
from edgeopt.mil.values import to_tensor, torch_dtype_named, type_name

Slot = int
Reference = Slot | tuple[Slot, ...]

# An operator's own complaint: a shape, an index or a mode that does not fit.
OP_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, KeyError, ZeroDivisionError)


@dataclass(frozen=True)
class Result:
    """One output of a step.

    Attributes:
        slot: where it is kept.
        name: of the variable.
        dtype: torch type that holds it; None for lists, labels and the like.
        shape: declared, None where it varies.
        half: whether the program declares fp16.
    """

    slot: Slot
    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...] | None
    half: bool


@dataclass
class Step:
    """One operator of a plan.

    Attributes:
        kind, name: of the operator.
        call: takes the values of `reads` by parameter name, returns a value or a tuple of them.
        reads: slots by parameter name.
        results: outputs.
        frees: slots nobody reads afterwards.
        blocks: nested blocks of control flow.
        function: the implementation, for those who want to show it.
    """

    kind: str
    name: str
    call: Callable[..., Any]
    reads: dict[str, Reference]
    results: tuple[Result, ...]
    frees: tuple[Slot, ...] = ()
    blocks: tuple[Block, ...] = ()


@dataclass
class Block:
    """Steps of one block, the slots of its arguments and of its outputs."""

    steps: list[Step]
    arguments: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


@dataclass
class Plan:
    """A function, planned.

    Attributes:
        block: the outermost block; its arguments are the inputs.
        inputs, states, outputs: slots by name.
        constants: values known before any call.
        slots: how many there are.
        results: of every input and constant float, for rounding and reports.
    """

    block: Block
    inputs: dict[str, Slot]
    states: dict[str, Any]
    outputs: dict[str, Slot]
    constants: dict[Slot, Any]
    slots: int
    results: dict[Slot, Result] = field(default_factory=dict)


class Planner:
    """Plans one function.

    Args:
        name: of the program.
        rounds: rounds a folded constant to half precision where it is declared so and the precision asks for it.
        integers: whether operators that read and write integers are computed as on integers, nothing between rounded.
    """

    def __init__(self, name: str, rounds: Callable[[bool, Any], Any], integers: bool = False) -> None:
        self.name = name
        self.rounds = rounds
        self.integers = integers
        self.exact: set[Any] = set()
        self.slot_of: dict[Any, Slot] = {}
        self.constants: dict[Slot, Any] = {}
        self.results: dict[Slot, Result] = {}

    def plan(self, body: Any) -> Plan:
        """Plan a PyMIL function.

        Raises:
            UnsupportedOpError: an operator has no implementation.
            ArtifactError: what depends on constants alone cannot be computed.
        """
        inputs, states = {}, {}
        for name, var in body.inputs.items():
            slot = self._slot(var)
            if type_name(var) is None:
                states[name] = var
            else:
                inputs[name] = slot
        block = self._block(body, tuple(self.slot_of[var] for var in body.inputs.values()))
        outputs = {var.name: self._value(var) for var in body.outputs}
        self._free(block, set(outputs.values()) | set(self.constants))
        return Plan(block, inputs, states, outputs, self.constants, len(self.slot_of), self.results)

    def _slot(self, var: Any) -> Slot:
        slot = self.slot_of.setdefault(var, len(self.slot_of))
        if slot not in self.results:
            self.results[slot] = self._result(slot, var)
        return slot

    def _result(self, slot: Slot, var: Any) -> Result:
        name = type_name(var)
        if name is None:
            return Result(slot, var.name, None, None, False)
        shape = None if any(is_symbolic(d) for d in var.shape) else tuple(int(d) for d in var.shape)
        return Result(slot, var.name, torch_dtype_named(name), shape, name == "fp16" and var not in self.exact)

    def _value(self, var: Any) -> Slot:
        """Return the slot of a variable, decoding it where it is a constant met for the first time."""
        known = var in self.slot_of
        slot = self._slot(var)
        if not known and is_constant(var):
            value = decode(var)
            if isinstance(value, np.ndarray | np.generic):
                value = self.rounds(self.results[slot].half, to_tensor(value))
            self.constants[slot] = value
        return slot

    def _block(self, block: Any, arguments: tuple[Slot, ...]) -> Block:
        steps = []
        layers = {layer.end: layer for layer in integer_layers(block)} if self.integers else {}
        self.exact |= unrounded(block) if self.integers else set()
        inner = {op for layer in layers.values() for op in layer.inner}
        for op in block.operations:
            if op.op_type == "const" or op.op_type.startswith("constexpr_") or op in inner:
                continue
            step = self._integer_step(layers[op]) if op in layers else self._step(op)
            if step is not None:
                steps.append(step)
        return Block(steps, arguments, tuple(self._value(var) for var in block.outputs))

    def _integer_step(self, layer: IntegerLayer) -> Step:
        whole = self._step(layer.layer)
        assert whole is not None and isinstance(whole.call, functools.partial)
        given = {name: value for name, value in whole.call.keywords.items() if name not in ("weight", "bias")}
        call = functools.partial(layer, functools.partial(whole.call.func, **given))
        results = tuple(self.results[self._slot(v)] for v in layer.end.outputs)
        return Step(whole.kind, whole.name, call, {"stored": self._value(layer.source)}, results)

    def _step(self, op: Any) -> Step | None:
        if op.op_type in ("cond", "while_loop"):
            return self._control(op)
        function = OPS.get(op.op_type)
        if function is None:
            return self._foreign(op)
        converters = converters_of(function)
        static: dict[str, Any] = {}
        reads: dict[str, Reference] = {}
        late: dict[str, Callable[[Any], Any]] = {}
        for name, var in op.inputs.items():
            if name not in converters:
                if name in IGNORED:
                    continue
                raise UnsupportedOpError(op.op_type, f"{op.name} in {self.name}", f"parameter {name!r} is not known")
            if isinstance(var, tuple | list):
                slots = tuple(self._value(v) for v in var)
                if all(slot in self.constants for slot in slots):
                    static[name] = converters[name](tuple(self.constants[slot] for slot in slots))
                else:
                    reads[name] = slots
                continue
            slot = self._value(var)
            if slot in self.constants:
                static[name] = converters[name](self.constants[slot])
            else:
                reads[name] = slot
                if is_static(converters[name]):
                    late[name] = converters[name]
        call: Callable[..., Any] = functools.partial(function, **static) if static else function
        if late:
            call = functools.partial(call_late, call, late)
        step = Step(op.op_type, op.name, call, reads, tuple(self.results[self._slot(v)] for v in op.outputs))
        if reads or op.op_type.startswith("random_") or op.op_type == "make_list":
            return step
        self._fold(step)
        return None

    def _fold(self, step: Step) -> None:
        """Compute a step whose inputs are all constants."""
        try:
            value = step.call()
        except OP_FAILURES as error:
            raise ArtifactError(f"{step.kind} {step.name} in {self.name} fails on constants: {error}") from error
        values = value if isinstance(value, tuple) else (value,)
        for result, part in zip(step.results, values, strict=True):
            if isinstance(part, torch.Tensor) and result.dtype is not None:
                part = self.rounds(result.half, part.to(result.dtype))
            self.constants[result.slot] = part

    def _foreign(self, op: Any) -> Step:
        """Leave an operator to coremltools."""
        if not has_value_inference(op.op_type):
            raise UnsupportedOpError(op.op_type, f"{op.name} in {self.name}", "the evaluator does not know it")
        reads: dict[str, Reference] = {}
        for name, var in op.inputs.items():
            several = isinstance(var, tuple | list)
            if not all(is_constant(v) for v in (var if several else (var,))):
                reads[name] = tuple(self._value(v) for v in var) if several else self._value(var)

        def call(**values: Any) -> Any:
            arrays = {k: tuple(t.numpy() for t in v) if isinstance(v, tuple) else v.numpy() for k, v in values.items()}
            parts = evaluate(op, arrays)
            return parts if len(parts) > 1 else parts[0]

        return Step(op.op_type, op.name, call, reads, tuple(self.results[self._slot(v)] for v in op.outputs))

    def _control(self, op: Any) -> Step:
        reads: dict[str, Reference] = {}
        if op.op_type == "cond":
            reads["pred"] = self._value(op.pred)
        else:
            reads["loop_vars"] = tuple(self._value(v) for v in op.loop_vars)
        blocks = tuple(self._block(b, tuple(self._slot(v) for v in b.inputs)) for b in op.blocks)
        results = tuple(self.results[self._slot(v)] for v in op.outputs)
        return Step(op.op_type, op.name, same, reads, results, blocks=blocks)

    def _free(self, block: Block, kept: set[Slot]) -> None:
        """Note behind each step which slots nobody reads afterwards, innermost blocks included."""
        alive = set(kept)
        for step in reversed(block.steps):
            inner = _reads_of_blocks(step.blocks)
            read = _slots_read(step) | inner
            made = {result.slot for result in step.results}
            step.frees = tuple((read | made) - alive)
            alive |= read
            for nested in step.blocks:
                own = _written(nested)
                outside = (inner | alive) - own
                self._free(nested, outside | set(nested.outputs) | set(nested.arguments) | set(self.constants))


def _slots_read(step: Step) -> set[Slot]:
    slots: set[Slot] = set()
    for reference in step.reads.values():
        slots |= set(reference) if isinstance(reference, tuple) else {reference}
    return slots


def _written(block: Block) -> set[Slot]:
    """Slots that a block and those inside it write."""
    slots = set(block.arguments)
    for step in block.steps:
        slots |= {result.slot for result in step.results}
        for nested in step.blocks:
            slots |= _written(nested)
    return slots


def _reads_of_blocks(blocks: tuple[Block, ...]) -> set[Slot]:
    """Slots that blocks read from around them."""
    slots: set[Slot] = set()
    for block in blocks:
        for step in block.steps:
            slots |= _slots_read(step) | _reads_of_blocks(step.blocks)
        slots |= set(block.outputs)
    return slots - set().union(*(_written(block) for block in blocks)) if blocks else slots
