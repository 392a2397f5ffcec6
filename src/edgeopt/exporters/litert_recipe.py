"""What ai-edge-quantizer is told to do with each operator of a float model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from ai_edge_quantizer import algorithm_manager, qtyping, recipe, recipe_manager

from edgeopt.exporters.kept_layers import fingerprint
from edgeopt.exporters.litert_graph import LitertGraph, Operator

Kind = qtyping.TFLOperationName
Granularity = qtyping.QuantGranularity

WEIGHT_OPS = {
    "CONV_2D": Kind.CONV_2D,
    "DEPTHWISE_CONV_2D": Kind.DEPTHWISE_CONV_2D,
    "TRANSPOSE_CONV": Kind.CONV_2D_TRANSPOSE,
    "FULLY_CONNECTED": Kind.FULLY_CONNECTED,
}
BLOCKS = {32: Granularity.BLOCKWISE_32, 64: Granularity.BLOCKWISE_64, 128: Granularity.BLOCKWISE_128}


def static(activation_bits: int, graph: LitertGraph, in_float: Iterable[Operator]) -> Any:
    """Return int8 weights and integer activations, with float inputs and outputs and some operators in float.

    Args:
        activation_bits: 8 or 16.
        graph: of the float model.
        in_float: operators that are not quantized.
    """
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8() if activation_bits == 8 else recipe.static_wi8_ai16())
    for boundary in (Kind.INPUT, Kind.OUTPUT):
        manager.add_quantization_config(".*", boundary, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    manager.add_dynamic_config(".*", Kind.EMBEDDING_LOOKUP, num_bits=8)
    _leave(manager, graph, in_float)
    return manager.get_quantization_recipe()


def dynamic(graph: LitertGraph, in_float: Iterable[Operator]) -> Any:
    """Return int8 weights; kernels quantize activations at each call."""
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    _leave(manager, graph, in_float)
    return manager.get_quantization_recipe()


def weight_only(graph: LitertGraph, bits: int, block_size: int, in_float: Iterable[Operator]) -> Any:
    """Return integer weights that are turned into floats before they are multiplied.

    With four bits, linear layers whose inputs divide into blocks have one scale per block; no LiteRT kernel multiplies
    such weights in float, so those activations are quantized at each call. Embeddings and depthwise convolutions,
    which have few weights per scale, keep eight bits.
    """
    manager = recipe_manager.RecipeManager()
    for kind in WEIGHT_OPS.values():
        narrow = kind in (Kind.CONV_2D, Kind.FULLY_CONNECTED)
        manager.add_weight_only_config(".*", kind, num_bits=bits if narrow else 8)
    manager.add_dynamic_config(".*", Kind.EMBEDDING_LOOKUP, num_bits=8)
    if bits == 4:
        linear = [op for op in graph.operators if op.kind == "FULLY_CONNECTED" and graph.is_constant(op.inputs[1])]
        blocked = [op for op in linear if graph.floats(op.inputs[1]).shape[1] % block_size == 0]
        if blocked:
            manager.add_dynamic_config(_named(graph, blocked), Kind.FULLY_CONNECTED, 4, BLOCKS[block_size])
    _leave(manager, graph, in_float)
    return manager.get_quantization_recipe()


def float16() -> Any:
    """Return weights stored in float16."""
    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(
        regex=".*",
        operation_name=Kind.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


def operators_with(graph: LitertGraph, fingerprints: Collection[bytes]) -> list[Operator]:
    """Return the operators that hold one of the float weights given by `kept_layers.fingerprint`."""
    holding = [op for op in graph.operators if op.kind in WEIGHT_OPS or op.kind == "EMBEDDING_LOOKUP"]
    constant = [op for op in holding if fingerprints and graph.is_constant(op.inputs[1])]
    return [op for op in constant if fingerprint(graph.floats(op.inputs[1])) in fingerprints]


def _leave(manager: recipe_manager.RecipeManager, graph: LitertGraph, operators: Iterable[Operator]) -> None:
    if left := list(operators):
        manager.add_quantization_config(
            _named(graph, left), Kind.ALL_SUPPORTED, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
        )


def _named(graph: LitertGraph, operators: Iterable[Operator]) -> str:
    """Return the expression that matches operators by the first tensor that they write."""
    return f"^(?:{'|'.join(re.escape(graph.name(op.outputs[0])) for op in operators)});"
