"""How each ONNX operator becomes PyTorch: one file per family, each with a table from operator to builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Quantized, Value

Builder: TypeAlias = Callable[[GraphBuilder, Node], Value | Quantized | tuple[Value | Quantized, ...]]
"""Adds what computes the node's outputs to the graph; raises UnsupportedOpError for a form it does not know."""
