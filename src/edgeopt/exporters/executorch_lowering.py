"""Lowers a program to XNNPACK and counts what that leaves to portable kernels."""

from __future__ import annotations

from collections import Counter

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.quant_utils import is_dequant
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, ExecutorchProgramManager, to_edge_transform_and_lower
from executorch.exir.backend.utils import get_delegates, get_non_lowered_nodes
from executorch.runtime import Runtime
from torch.export import ExportedProgram
from torch.fx import Node

from edgeopt.core.errors import UnsupportedOpError

LAYERS = ("conv", "linear", "addmm", "mm", "bmm")


class WeightOnlyLinear(LinearConfig):  # type: ignore[misc]
    """Takes linear layers of integer weights and float activations, for which XNNPACK has kernels.

    The converter's own configuration asks for quantized activations wherever a weight is quantized.
    """

    def _get_act_deps(self, node: Node, ep: ExportedProgram, precision: ConfigPrecisionType) -> tuple[bool, list[Node]]:
        source = node.args[0]
        if isinstance(source, Node) and is_dequant(source):
            found: tuple[bool, list[Node]] = super()._get_act_deps(node, ep, precision)
            return found
        return True, []

    def _get_output_deps(
        self, node: Node, ep: ExportedProgram, precision: ConfigPrecisionType
    ) -> tuple[bool, list[Node]]:
        source = node.args[0]
        if isinstance(source, Node) and is_dequant(source):
            found: tuple[bool, list[Node]] = super()._get_output_deps(node, ep, precision)
            return found
        return True, []


def lower(program: ExportedProgram, weight_only: bool) -> EdgeProgramManager:
    """Return the program with all that XNNPACK takes delegated to it."""
    configs = ALL_PARTITIONER_CONFIGS
    if weight_only:
        configs = [WeightOnlyLinear if config is LinearConfig else config for config in configs]
    return to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner(configs=configs)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )


def refuse_missing_kernels(made: ExecutorchProgramManager) -> None:
    """Raise for what the converter writes and the runtime cannot load: its own error does not name the operator.

    Raises:
        UnsupportedOpError: the first operator without a kernel.
    """
    known = set(Runtime.get().operator_registry.operator_names)
    for plan in made.executorch_program.execution_plan:
        for operator in plan.operators:
            name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
            if name not in known:
                advice = "ExecuTorch has no kernel for it; compute it outside the model or replace it"
                raise UnsupportedOpError(name, plan.name, advice)


def run_once(made: ExecutorchProgramManager, inputs: tuple[torch.Tensor, ...]) -> None:
    """Execute a program; what it answers does not matter.

    Raises:
        RuntimeError: the runtime cannot.
    """
    program = Runtime.get().load_program(made.buffer)  # the method reads the program's memory
    program.load_method("forward").execute(list(inputs))


def float_layers(program: ExportedProgram) -> tuple[str, ...]:
    """Return the convolutions and linear layers of a quantized program whose weights are float."""
    left = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(f".{layer}" in str(node.target) for layer in LAYERS):
            continue
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, Node) and "dequantize" not in str(weight.target):
            left.append(f"{node.target} {node.name}: XNNPACK computes it in float")
    return tuple(left)


def portable_operators(lowered: EdgeProgramManager) -> Counter[str]:
    """Count the operators that were not delegated; views and casts between delegates are among them."""
    module = lowered.exported_program().graph_module
    assert get_delegates(module.graph) is not None
    counts: Counter[str] = Counter()
    for node in get_non_lowered_nodes(module.graph):
        name = str(getattr(node.target, "__name__", node.target))
        if "getitem" not in name:
            counts[name] += 1
    return counts


def portable_float_operators(lowered: EdgeProgramManager) -> int:
    """Count the operators outside XNNPACK that make floats."""
    nodes = get_non_lowered_nodes(lowered.exported_program().graph_module.graph)
    return sum(_makes_floats(node) for node in nodes if "getitem" not in str(node.target))


def _makes_floats(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
