"""The forms of an exported program that coremltools is offered, the most whole one first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from torch.export import ExportedProgram

CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default, torch.ops.aten.clamp.default)


def lowered_programs(program: ExportedProgram, whole: bool) -> Iterator[tuple[bool, ExportedProgram]]:
    """Yield the program in the forms that coremltools may know, each with whether it is the last one.

    First as it is; then with only those operators taken apart that coremltools has no translation of; then with all
    default decompositions, unless it must stay `whole`. What is taken apart is slower and less exact (hard swish loses
    16 dB in float16), and a quantized layer would come apart between its quantize and dequantize.
    """
    yield False, _mended(program.run_decompositions({}))
    table = torch.export.default_decompositions()
    for operator in list(table.keys()):  # type: ignore[no-untyped-call]
        if _TORCH_OPS_REGISTRY.get_func(str(operator)) is not None:
            table.pop(operator)  # type: ignore[no-untyped-call]
    yield whole, _mended(program.run_decompositions(table))
    if not whole:
        yield True, _mended(program.run_decompositions())


def _mended(program: ExportedProgram) -> ExportedProgram:
    """Take out `alias` nodes, which coremltools does not know, and give clamps float bounds."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    with_float_bounds(program)
    return program


def with_float_bounds(program: ExportedProgram) -> None:
    """Write the integer bounds of clamps on floats as floats; coremltools refuses `hardtanh(x, 0, 6)`."""
    for node in program.graph.nodes:
        if node.target in CLAMPS and node.meta["val"].is_floating_point():
            node.args = (node.args[0], *(float(a) if isinstance(a, int) else a for a in node.args[1:]))
