"""A float program computed in half precision, what it casts and creates by itself included."""

from __future__ import annotations

import math

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_aggregate

from edgeopt.exporters.coreml_executorch_weights import constant
from edgeopt.exporters.program import HalfPrecision

LARGEST = 65504.0
"""Finite number in half precision."""


def half_program(program: ExportedProgram, examples: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Return the program in float16 between float32 inputs and outputs.

    `module.half()` converts parameters and buffers only: a cast of a mask to float32, a tensor that the graph makes, or
    one that export lifted out of the code would meet a half beside it.
    """
    module = program.module()
    assert isinstance(module, GraphModule)
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = map_aggregate(node.args, _halved)
            node.kwargs = map_aggregate(node.kwargs, _halved)
            if _makes_floats(node):
                node.kwargs = {**node.kwargs, "dtype": torch.float16}
        elif node.op == "get_attr":
            _halve_constant(module, node)
    _widen_last_sigmoids(module)
    module.recompile()
    return torch.export.export(HalfPrecision(module), examples)


def _widen_last_sigmoids(module: GraphModule) -> None:
    """Compute sigmoids that are outputs in float32, in place.

    Before: `half → sigmoid → output`; after: `half → float32 → sigmoid → output`. XNNPACK's half-precision sigmoid
    gives zero where the result is below 6e-5, the smallest normal half: most scores of a detector are.
    """
    output = module.graph.output_node()
    for node in output.all_input_nodes:
        if node.target is torch.ops.aten.sigmoid.default and set(node.users) == {output}:
            with module.graph.inserting_before(node):
                wide = module.graph.call_function(torch.ops.aten.to.dtype, (node.args[0], torch.float32))
            node.args = (wide,)


def _makes_floats(node: Node) -> bool:
    """Whether a node makes a tensor out of nothing, in the default type."""
    value = node.meta.get("val")
    if node.all_input_nodes or not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(argument.name == "dtype" for argument in schema.arguments)


def _halved(argument: Argument) -> Argument:
    """Return float16 for float32, and the nearest finite half for a number beyond all of them, as masks are made of."""
    if isinstance(argument, float) and math.isfinite(argument) and abs(argument) > LARGEST:
        return math.copysign(LARGEST, argument)
    return torch.float16 if argument is torch.float32 else argument


def _halve_constant(module: GraphModule, node: Node) -> None:
    """Halve a constant that is no parameter and no buffer."""
    known = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    value = constant(module, node)
    if str(node.target) not in known and value.dtype == torch.float32:
        owner, _, name = str(node.target).rpartition(".")
        setattr(module.get_submodule(owner), name, value.half())
