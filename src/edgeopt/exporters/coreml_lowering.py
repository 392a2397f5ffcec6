"""The forms of an exported program that coremltools is offered, the most whole one first."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from torch.export import ExportedProgram
from torch.fx.node import Argument, map_aggregate

HALF_MAX = 65504.0
MASK = 2.0**15
"""Stands for a number that half precision cannot hold: a mask is as good, and scores added to it stay finite."""
CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default, torch.ops.aten.clamp.default)


def lowered_programs(program: ExportedProgram, whole: bool, half: bool) -> Iterator[tuple[bool, ExportedProgram]]:
    """Yield the program in the forms that coremltools may know, each with whether it is the last one.

    First as it is; then with only those operators taken apart that coremltools has no translation of; then with all
    default decompositions, unless it must stay `whole`. What is taken apart is slower and less exact (hard swish loses
    16 dB in float16), and a quantized layer would come apart between its quantize and dequantize.

    Args:
        program: as it was captured.
        whole: do not take everything apart.
        half: it will compute in float16.
    """
    yield False, _mended(program.run_decompositions({}), half)
    table = torch.export.default_decompositions()
    for operator in list(table.keys()):  # type: ignore[no-untyped-call]
        if _TORCH_OPS_REGISTRY.get_func(str(operator)) is not None:
            table.pop(operator)  # type: ignore[no-untyped-call]
    yield whole, _mended(program.run_decompositions(table), half)
    if not whole:
        yield True, _mended(program.run_decompositions(), half)


def _mended(program: ExportedProgram, half: bool) -> ExportedProgram:
    """Take out `alias` nodes, which coremltools does not know, give clamps float bounds, keep masks finite."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    with_float_bounds(program)
    if half:
        within_half(program)
    return program


def within_half(program: ExportedProgram) -> None:
    """Bring finite numbers that float16 cannot hold near zero, in place: arguments of operators, and constants.

    Before: `masked_fill(scores, mask, -3.4e38)`, in float16 -inf; a row of nothing but padding is NaN behind softmax.
    After: `masked_fill(scores, mask, -32768)`.
    """
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.args = map_aggregate(node.args, _within_half)
            node.kwargs = map_aggregate(node.kwargs, _within_half)
    for store in (program.constants, program.state_dict):
        for name, value in store.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                beyond = value.isfinite() & (value.abs() > HALF_MAX)
                if bool(beyond.any()):
                    store[name] = torch.where(beyond, value.sign() * MASK, value)


def _within_half(argument: Argument) -> Argument:
    if isinstance(argument, float) and math.isfinite(argument) and abs(argument) > HALF_MAX:
        return math.copysign(MASK, argument)
    return argument


def with_float_bounds(program: ExportedProgram) -> None:
    """Write the integer bounds of clamps on floats as floats; coremltools refuses `hardtanh(x, 0, 6)`."""
    for node in program.graph.nodes:
        if node.target in CLAMPS and node.meta["val"].is_floating_point():
            node.args = (node.args[0], *(float(a) if isinstance(a, int) else a for a in node.args[1:]))
