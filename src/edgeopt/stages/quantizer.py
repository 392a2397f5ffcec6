"""Where a PT2E graph is observed and quantized: the annotations that all formats' kernels can fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv1d.padding)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
LINEAR = (aten.linear.default,)
CLAMPS = (aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor)
SAME_SCALE = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.dropout.default,
)

ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
)


def _weight(channel_axis: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=channel_axis,
    )


class EdgeQuantizer(Quantizer):
    """Static int8: per-channel symmetric weights in [-127, 127], per-tensor affine int8 activations.

    A convolution or linear layer and the clamp (ReLU, ReLU6) after it are one unit, observed once, after the clamp:
    an observation between them spends the int8 range on values that the clamp throws away. Pooling, padding and
    reshaping keep their input's scale. Softmax, normalisation and every operator not named here stay in float.

    Before: `conv → hardtanh → max_pool → add` in float.
    After: `[conv hardtanh] → q → max_pool (same scale) → add → q`.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every node that will be quantized; called by `prepare_pt2e`."""
        for node in model.graph.nodes:
            if node.op != "call_function" or _done(node):
                continue
            if node.target in CONVOLUTIONS:
                self._layer(node, channel_axis=0)
            elif node.target in TRANSPOSED:
                self._layer(node, channel_axis=1)
            elif node.target in LINEAR:
                self._layer(node, channel_axis=0)
            elif node.target in SUMS:
                self._elementwise(node)
            elif node.target is aten.cat.default:
                self._concatenation(node)
            elif node.target in SAME_SCALE:
                self._same_scale(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: annotations are made for every graph."""

    def _layer(self, node: Node, channel_axis: int) -> None:
        if channel_axis == 1 and len(node.args) > 6 and node.args[6] != 1:
            return  # grouped transposed convolution: its weight's output channels are split over two axes
        source, weight = node.args[0], node.args[1]
        if not isinstance(source, Node) or not isinstance(weight, Node) or weight.op != "get_attr":
            return
        unit_end = _only_user(node, CLAMPS)
        inputs: dict[Node, Any] = {source: ACTIVATION, weight: _weight(channel_axis)}
        if unit_end is None:
            _annotate(node, inputs, ACTIVATION)
        else:
            _annotate(node, inputs, None)
            _annotate(unit_end, {}, ACTIVATION)

    def _elementwise(self, node: Node) -> None:
        operands = [a for a in node.args[:2] if isinstance(a, Node)]
        if len(operands) != 2 or any(a.op == "get_attr" or not _is_float(a) for a in operands):
            return
        unit_end = _only_user(node, CLAMPS)
        inputs: dict[Node, Any] = dict.fromkeys(operands, ACTIVATION)
        if unit_end is None:
            _annotate(node, inputs, ACTIVATION)
        else:
            _annotate(node, inputs, None)
            _annotate(unit_end, {}, ACTIVATION)

    def _concatenation(self, node: Node) -> None:
        parts = node.args[0]
        if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Node) and _is_float(p) for p in parts):
            return
        first = parts[0]
        assert isinstance(first, Node)
        shared = SharedQuantizationSpec((first, node))
        inputs: dict[Node, Any] = {p: shared for p in parts if isinstance(p, Node)}
        inputs[first] = ACTIVATION
        _annotate(node, inputs, shared)

    def _same_scale(self, node: Node) -> None:
        source = node.args[0]
        if not isinstance(source, Node) or not _is_float(source) or source.op == "get_attr":
            return
        annotation = source.meta.get("quantization_annotation")
        if annotation is None or annotation.output_qspec is None:
            return  # its input stays in float, so it does too
        shared = SharedQuantizationSpec(source)
        _annotate(node, {source: shared}, shared)


def _done(node: Node) -> bool:
    return "quantization_annotation" in node.meta


def _annotate(node: Node, inputs: dict[Node, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )


def _only_user(node: Node, targets: tuple[Callable[..., Any], ...]) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in targets else None


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32
