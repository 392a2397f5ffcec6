"""Runs a planned program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from edgeopt.core.errors import ArtifactError, UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.mil.interface import Feature, from_program, to_program
from edgeopt.mil.ops.state import StateCell
from edgeopt.mil.package import Program
from edgeopt.mil.plan import OP_FAILURES, Block, Planner, Reference, Result, Step
from edgeopt.mil.values import torch_dtype_named, type_name

Array = NDArray[Any]
Precision = Literal["int8", "fp32", "fp16"]

# Called after every operator with its type, the variable's name and the value.
Hook = Callable[[str, str, torch.Tensor], None]

_PRECISIONS = ("int8", "fp32", "fp16")


class Evaluator:
    """Evaluates one function of an ML Program with torch.

    `fp32` computes every float in single precision, whatever the program declares. `fp16` rounds the result of every
    operator that the program declares as fp16, as a device does between operators; where a program declares none (a
    package made with compute precision FLOAT32) it rounds all of them, which shows what half precision would cost.
    Sums inside an operator stay in single precision either way. `int8` is `fp16` but for operators that read and write
    integers: layers add up integers, as kernels for them do (`integer_layers`), and nothing is rounded on the way to
    the next integers. It stands for devices with int8 arithmetic, `fp16` for those without.

    Attributes:
        inputs, outputs: as the package declares them.
    """

    def __init__(self, program: Program, precision: Precision = "fp32") -> None:
        """Plan the program.

        Raises:
            UsageError: there is no such precision.
            UnsupportedOpError: an operator has no implementation.
            ArtifactError: the program cannot be computed.
        """
        if precision not in _PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}{did_you_mean(precision, _PRECISIONS)}")
        self.program = program
        self.precision = precision
        self.inputs: tuple[TensorSpec, ...] = program.inputs
        self.outputs: tuple[TensorSpec, ...] = program.outputs
        self._halves = declares_half(program.body)
        with torch.inference_mode():
            self._plan = Planner(program.name, self._round, integers=precision == "int8").plan(program.body)
        self._template: list[Any] = [None] * self._plan.slots
        for slot, value in self._plan.constants.items():
            self._template[slot] = value

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """Type and name of every operator of the outermost block that is computed at each call."""
        return tuple((step.kind, step.name) for step in self._plan.block.steps)

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Return for every computed variable of the outermost block the variables it was computed from."""
        names = {slot: result.name for slot, result in self._plan.results.items()}
        table = {}
        for step in self._plan.block.steps:
            slots: list[int] = []
            for reference in step.reads.values():
                slots += reference if isinstance(reference, tuple) else (reference,)
            for result in step.results:
                table[result.name] = tuple(names[slot] for slot in slots)
        return table

    def make_state(self) -> dict[str, StateCell]:
        """Return fresh state, all zeros; pass it to every call of one sequence."""
        cells = {}
        for name, var in self._plan.states.items():
            wrapped = var.sym_type.wrapped_type()
            shape = [int(d) for d in wrapped.get_shape()]
            kind = str(types.builtin_to_string(wrapped.get_primitive()))
            cells[name] = StateCell(torch.zeros(shape, dtype=torch_dtype_named(kind)), half=kind == "fp16")
        return cells

    def __call__(
        self,
        inputs: Mapping[str, Array],
        *,
        state: dict[str, StateCell] | None = None,
        hook: Hook | None = None,
    ) -> dict[str, Array]:
        """Evaluate once.

        Args:
            inputs: an array for every input, batch included.
            state: from `make_state`; fresh for this call where it is None.
            hook: called with every operator's results as they are computed.

        Raises:
            ArtifactError: an input does not fit its declaration, or an operator fails on it.
        """
        with torch.inference_mode():
            slots = list(self._template)
            for name, tensor in to_program(self.program.features, inputs).items():
                slot = self._plan.inputs[name]
                slots[slot] = self._round(self._plan.results[slot].half, tensor)
            cells = self.make_state() if state is None else state
            for name, var in self._plan.states.items():
                if name not in cells:
                    raise ArtifactError(f"state {name} {list(var.shape)} is missing; take it from make_state()")
            for name, slot in zip(self.program.body.inputs, self._plan.block.arguments, strict=True):
                if name in cells:
                    slots[slot] = cells[name]
            self._run(self._plan.block, slots, hook)
            values = {name: slots[slot] for name, slot in self._plan.outputs.items()}
        return from_program(self._named_results(values), values)

    def _named_results(self, values: Mapping[str, Any]) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.program.results if feature.spec.name in values)

    def _round(self, declared_half: bool, value: Any) -> Any:
        """Round a float tensor to half precision where this evaluator's precision says so."""
        everywhere = self.precision == "fp16" and not self._halves
        if self.precision != "fp32" and (declared_half or everywhere) and value.dtype == torch.float32:
            return value.half().float()
        return value

    def _run(self, block: Block, slots: list[Any], hook: Hook | None) -> None:
        for step in block.steps:
            values = self._control(step, slots, hook) if step.blocks else self._compute(step, slots)
            for result, value in zip(step.results, values, strict=True):
                slots[result.slot] = value
                if hook is not None and isinstance(value, torch.Tensor):
                    hook(step.kind, result.name, value)
            for slot in step.frees:
                slots[slot] = None

    def _compute(self, step: Step, slots: list[Any]) -> list[Any]:
        try:
            value = step.call(**{name: _fetch(slots, reference) for name, reference in step.reads.items()})
        except OP_FAILURES as error:
            raise ArtifactError(f"{step.kind} {step.name} in {self.program.name} fails: {error}") from error
        values = value if isinstance(value, tuple) else (value,)
        return [self._settle(step, result, part) for result, part in zip(step.results, values, strict=True)]

    def _settle(self, step: Step, result: Result, value: Any) -> Any:
        """Give a result its declared type and precision, and compare its shape with the declared one."""
        if result.dtype is None:
            return value
        if value.dtype != result.dtype:
            value = value.to(result.dtype)
        if result.shape is not None and value.shape != result.shape:
            raise ArtifactError(
                f"{step.kind} {step.name} in {self.program.name} makes {list(value.shape)},"
                f" the package declares {list(result.shape)}"
            )
        return self._round(result.half, value)

    def _control(self, step: Step, slots: list[Any], hook: Hook | None) -> list[Any]:
        if step.kind == "cond":
            chosen = step.blocks[0] if bool(_fetch(slots, step.reads["pred"])) else step.blocks[1]
            self._run(chosen, slots, hook)
            return [slots[slot] for slot in chosen.outputs]
        condition, body = step.blocks
        values = list(_fetch(slots, step.reads["loop_vars"]))
        while True:
            _store(slots, condition.arguments, values)
            self._run(condition, slots, hook)
            if not bool(slots[condition.outputs[0]]):
                return values
            _store(slots, body.arguments, values)
            self._run(body, slots, hook)
            values = [slots[slot] for slot in body.outputs]


def _fetch(slots: list[Any], reference: Reference) -> Any:
    return tuple(slots[slot] for slot in reference) if isinstance(reference, tuple) else slots[reference]


def _store(slots: list[Any], where: tuple[int, ...], values: list[Any]) -> None:
    for slot, value in zip(where, values, strict=True):
        slots[slot] = value


def declares_half(block: Any) -> bool:
    """Whether any variable of a block is declared as fp16."""
    for op in block.operations:
        if any(type_name(var) == "fp16" for var in op.outputs):
            return True
        if any(declares_half(nested) for nested in op.blocks):
            return True
    return False
