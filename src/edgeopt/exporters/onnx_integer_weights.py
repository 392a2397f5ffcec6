"""Float ONNX graphs with their weights stored in integers, for dynamic and weight-only quantization.

Weights come in on the integer grid (or are rounded to the nearest): symmetric, one scale per output channel, the
largest magnitude at the grid's end; `max |w| / largest` in float32 is the scale, as in the quantized PyTorch graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.exporters.kept_layers import fingerprint
from edgeopt.exporters.onnx_decoders import cast_and_scale, lookup, replace
from edgeopt.exporters.onnx_rewrites import remove_unused_constants, sort_nodes

Mode = Literal["dynamic", "weight_only"]


@dataclass(frozen=True)
class Plan:
    """How weights are stored.

    Attributes:
        mode: whether matrix products quantize their activations at each call or compute in float.
        bits: 8 or 4; embeddings and grouped convolutions, which have few weights per scale, keep 8.
        block_size: weights of a linear layer that share a scale along its inputs, with 4 bits.
        largest: the integer at the end of the 8-bit grid: 127, or 63 where 16-bit sums must not saturate.
        kept: fingerprints of weights that stay in float.
    """

    mode: Mode
    bits: int
    block_size: int
    largest: int
    kept: Collection[bytes]


def store_weights(model: onnx.ModelProto, plan: Plan) -> int:
    """Store the weights of layers and embeddings in integers; returns how many weights.

    Before: `Conv(x, W)`, `MatMul(x, W)`, `Gemm(x, W, b)`, `Gather(W, ids)`.
    After: `Conv(x, Cast(int W) * scale)`, which ONNX Runtime folds when a session is made (it has no dynamic
    per-channel convolution, and runs one behind a DequantizeLinear at a third of the speed);
    `MatMul(x, DequantizeLinear(int W))`, which it turns into its MatMulNBits, or
    `MatMulInteger(quantized x, int W) * scales`; and `Cast(Gather(int W, ids)) * Gather(scale, ids)`.
    """
    graph = model.graph
    _split_gemms(model)
    writer = _Writer(graph, plan)
    for node in list(graph.node):
        if node.op_type in ("Conv", "ConvTranspose"):
            writer.convolution(node)
        elif node.op_type == "MatMul":
            writer.product(node)
        elif node.op_type == "Gather":
            writer.embedding(node)
    remove_unused_constants(model)
    sort_nodes(model)
    return writer.stored


def channel_scales(weight: np.ndarray, axis: int, largest: int) -> np.ndarray:
    """Return the float32 scale of each channel along `axis`; a channel of zeros has the median."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    return _scales(np.abs(weight).max(axis=others), largest)


class _Writer:
    """Replaces float weights of one graph."""

    def __init__(self, graph: onnx.GraphProto, plan: Plan) -> None:
        self.graph = graph
        self.plan = plan
        self.constants = {i.name: i for i in graph.initializer}
        self.decoded: dict[str, str] = {}
        self.quantized: dict[str, tuple[str, str, str]] = {}
        self.stored = 0

    def convolution(self, node: onnx.NodeProto) -> None:
        """Replace `W` of a convolution."""
        weight = self._float(node.input[1])
        if weight is None:
            return
        name = node.input[1]
        if name not in self.decoded:
            axis = 0 if node.op_type == "Conv" else 1
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if axis == 1 and groups > 1:
                return  # its output channels lie on two axes
            bits = self.plan.bits if groups == 1 else 8
            scale = channel_scales(weight, axis, self._largest(bits))
            shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
            self._store(weight / scale.reshape(shape), name, bits)
            self._constant(f"{name}_scale", scale.reshape(shape))
            self.decoded[name] = f"{name}_decoded"
            self.graph.node.extend(cast_and_scale(f"{name}_int", f"{name}_scale", f"{name}_decoded"))
        node.input[1] = self.decoded[name]

    def product(self, node: onnx.NodeProto) -> None:
        """Replace `W` of a matrix product, `[inputs, outputs]`."""
        weight = self._float(node.input[1])
        if weight is None or weight.ndim != 2:
            return
        if self.plan.mode == "dynamic":
            self._dynamic_product(node, weight)
            return
        name = node.input[1]
        if name not in self.decoded:
            self.decoded[name] = f"{name}_decoded"
            block = (
                self.plan.block_size if self.plan.bits == 4 and weight.shape[0] % self.plan.block_size == 0 else None
            )
            largest = self._largest(self.plan.bits)
            if block is None:
                scale = channel_scales(weight, 1, largest)
                self._store(weight / scale, name, self.plan.bits)
                attributes: dict[str, Any] = {"axis": 1}
            else:
                blocks = weight.reshape(-1, block, weight.shape[1])
                scale = _scales(np.abs(blocks).max(axis=1), largest)
                self._store((blocks / scale[:, None, :]).reshape(weight.shape), name, self.plan.bits)
                attributes = {"axis": 0, "block_size": block}
            self._constant(f"{name}_scale", scale)
            operands = [f"{name}_int", f"{name}_scale"]
            self.graph.node.append(
                helper.make_node(
                    "DequantizeLinear", operands, [self.decoded[name]], name=f"{name}_decode", **attributes
                )
            )
        node.input[1] = self.decoded[name]

    def embedding(self, node: onnx.NodeProto) -> None:
        """Replace the table of a lookup of rows."""
        weight = self._float(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if weight is None or weight.ndim != 2 or axis != 0:
            return
        name = node.input[0]
        if name not in self.decoded:
            self.decoded[name] = name
            scale = channel_scales(weight, 0, 127)
            self._store(weight / scale[:, None], name, 8)
            self._constant(f"{name}_scale", scale[:, None])
        replace(self.graph, node, lookup(node, f"{name}_int", f"{name}_scale"))

    def _dynamic_product(self, node: onnx.NodeProto, weight: np.ndarray) -> None:
        name, source, base = node.input[1], node.input[0], node.name or node.output[0]
        if name not in self.decoded:
            self.decoded[name] = name
            scale = channel_scales(weight, 1, self.plan.largest)
            self._store(weight / scale, name, 8)
            self._constant(f"{name}_scale", scale)
            self._constant(f"{name}_zero", np.zeros(len(scale), np.int8))
        added = []
        if source not in self.quantized:
            names = (f"{source}_int", f"{source}_scale", "activation_zero")
            self.quantized[source] = names
            added += self._quantized_rows(source, names[0], names[1])
        integers, scale_name, zero = self.quantized[source]
        added += [
            helper.make_node(
                "MatMulInteger",
                [integers, f"{name}_int", zero, f"{name}_zero"],
                [f"{base}_sums"],
                name=f"{base}_integer",
            ),
            helper.make_node(
                "Cast", [f"{base}_sums"], [f"{base}_cast"], name=f"{base}_cast", to=onnx.TensorProto.FLOAT
            ),
            # One scale at a time: ONNX Runtime fuses a product of both into a kernel that has one scale for all rows.
            helper.make_node("Mul", [f"{base}_cast", f"{name}_scale"], [f"{base}_columns"], name=f"{base}_columns"),
            helper.make_node("Mul", [f"{base}_columns", scale_name], [node.output[0]], name=f"{base}_rows"),
        ]
        replace(self.graph, node, added)

    def _quantized_rows(self, source: str, integers: str, scale: str) -> list[onnx.NodeProto]:
        """Return nodes that bring every row to 8 bits by its own largest magnitude, around a zero point of 128.

        DynamicQuantizeLinear has one scale for all rows: the largest token of a text decides for the others.
        """
        if "activation_zero" not in self.constants:
            shared: dict[str, np.ndarray] = {
                "activation_zero": np.array(128, np.uint8),
                "activation_one": np.array(1, np.float32),
                "activation_steps": np.array(127, np.float32),
                "activation_least": np.array(1e-30, np.float32),
                "activation_axes": np.array([-1], np.int64),
            }
            for name, value in shared.items():
                self._constant(name, value)
                self.constants[name] = self.graph.initializer[-1]
        largest, nonzero, scaled = f"{source}_largest", f"{source}_nonzero", f"{source}_scaled"
        return [
            helper.make_node("Abs", [source], [f"{source}_abs"], name=f"{source}_abs"),
            helper.make_node("ReduceMax", [f"{source}_abs", "activation_axes"], [largest], name=largest, keepdims=1),
            helper.make_node("Max", [largest, "activation_least"], [nonzero], name=nonzero),
            helper.make_node("Div", [nonzero, "activation_steps"], [scale], name=scale),
            helper.make_node("Div", [source, scale], [scaled], name=scaled),
            helper.make_node(
                "QuantizeLinear", [scaled, "activation_one", "activation_zero"], [integers], name=f"{source}_quantize"
            ),
        ]

    def _float(self, name: str) -> np.ndarray | None:
        """Return a constant float weight that is to be stored in integers."""
        if name not in self.constants or self.constants[name].data_type != onnx.TensorProto.FLOAT:
            return None
        weight = numpy_helper.to_array(self.constants[name])
        if weight.ndim < 2 or (self.plan.kept and fingerprint(weight) in self.plan.kept):
            return None
        return weight

    def _largest(self, bits: int) -> int:
        return self.plan.largest if bits == 8 and self.plan.mode == "dynamic" else 2 ** (bits - 1) - 1

    def _store(self, scaled: np.ndarray, name: str, bits: int) -> None:
        limit = 127 if bits == 8 else 7
        integers = np.clip(np.rint(scaled), -limit, limit).astype(np.int8)
        if bits == 8:
            self._constant(f"{name}_int", integers)
        else:
            pairs = np.append(integers.reshape(-1), np.zeros(integers.size % 2, np.int8)).reshape(-1, 2) & 15
            packed = (pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8)
            self.graph.initializer.append(
                onnx.TensorProto(
                    name=f"{name}_int", data_type=onnx.TensorProto.INT4, dims=scaled.shape, raw_data=packed.tobytes()
                )
            )
        self.stored += 1

    def _constant(self, name: str, values: np.ndarray) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _split_gemms(model: onnx.ModelProto) -> None:
    """Say `Gemm(x, W, b)` with a constant weight as `MatMul(x, W) + b`, which has more integer kernels."""
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Gemm" and n.input[1] in constants]:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if options.get("transA", 0) or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            continue
        name = node.input[1]
        if options.get("transB", 0):
            weight = numpy_helper.to_array(constants[name])
            name = f"{name}_transposed"
            if name not in constants:
                constants[name] = numpy_helper.from_array(np.ascontiguousarray(weight.T), name)
                graph.initializer.append(constants[name])
        has_bias = len(node.input) > 2 and node.input[2] != ""
        product = f"{node.output[0]}_product" if has_bias else node.output[0]
        parts = [helper.make_node("MatMul", [node.input[0], name], [product], name=node.name)]
        if has_bias:
            parts.append(
                helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.output[0]}_bias")
            )
        replace(graph, node, parts)
    remove_unused_constants(model)


def _scales(magnitudes: np.ndarray, largest: int) -> np.ndarray:
    scale = magnitudes.astype(np.float32) / np.float32(largest)
    usual = np.median(scale[scale > 0]) if np.any(scale > 0) else np.float32(1)
    return np.where(scale > 0, scale, usual).astype(np.float32)
