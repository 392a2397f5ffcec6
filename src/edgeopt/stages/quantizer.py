"""Where a PT2E graph is observed and quantized: the annotations that all formats' kernels can fuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgeopt.core.quantization import Estimator, QuantizationOptions, Scheme, scheme_of
from edgeopt.stages.observers import PerChannelWeightObserver, RangeObserver
from edgeopt.stages.units import MOVERS, Unit, domain_of, is_float, shape_of, units_of, wanting_integers

__all__ = ["EdgeQuantizer", "Unit", "units_of"]

STATIC_INT8 = scheme_of("static_wi8_ai8")
DEFAULT_ESTIMATOR = QuantizationOptions().estimator
ANNOTATION = "quantization_annotation"
HEADROOM = 3.0


class PerChannelFakeQuantize(FakeQuantize):
    """A weight's fake quantizer; torchao hands a channel axis only to classes of such a name."""


class EdgeQuantizer(Quantizer):
    """Static int8 or int16 activations, int8 weights: per channel, symmetric, in [-127, 127].

    A convolution, linear layer, sum or product and the clamp (ReLU, ReLU6) after it are one unit, observed once, behind
    the clamp: an observation between them spends the integers on values that the clamp throws away. What saturates
    (hard-swish, sigmoid, GELU) is its own unit, as integer kernels have it, and the range observed before it ends where
    it saturates. Matrix products of two activations read and write integers. Sums, products, pooling and concatenations
    are quantized where integers go in and a later layer reads integers again; what moves values keeps their scale.
    Tensors of one value per channel, as pooled features and class scores, have few values per sample to tell how far
    unseen ones reach; their ranges end no sooner than `HEADROOM` standard deviations beyond the samples' mean extremes.
    Embedding tables are int8 per row. Softmax, normalisation, mask arithmetic and every operator that no unit has stay
    in float; masks are in no observed range.

    Args:
        scheme: 8 bits per activation: affine in [-128, 127]; 16 bits: symmetric in [-32767, 32767].
        estimator: of activation ranges.
        keep_float: names of units that stay in float with all that belongs to them.
        matmuls: whether products of two activations (attention) are quantized.
        training: put fake quantizers in place of observers, for `prepare_qat_pt2e`.
        reduce_range: weights in [-63, 63], for kernels that would saturate.

    Before: `conv → hardtanh → max_pool → add` in float.
    After: `[conv hardtanh] → q → max_pool (same scale) → add → q`.
    """

    def __init__(
        self,
        scheme: Scheme = STATIC_INT8,
        *,
        estimator: Estimator = DEFAULT_ESTIMATOR,
        keep_float: Collection[str] = (),
        matmuls: bool = True,
        training: bool = False,
        reduce_range: bool = False,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.estimator = estimator
        self.keep_float = frozenset(keep_float)
        self.matmuls = matmuls
        self.training = training
        self.largest_weight = 63 if reduce_range else 127
        self._batch: tuple[int, ...] = ()

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every node that will be quantized; called by `prepare_pt2e`."""
        units = {u.first: u for u in units_of(model) if not self._stays_float(u)}
        wanted = wanting_integers(model, units)
        self._batch = next((shape_of(n)[:1] for n in model.graph.nodes if n.op == "placeholder" and shape_of(n)), ())
        for node in model.graph.nodes:
            unit = units.get(node)
            if unit is not None:
                self._annotate_unit(unit, wanted)
            elif node.op == "call_function" and node.target in MOVERS and node.name not in self.keep_float:
                _keep_scale(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: annotations are made for every graph."""

    def activation(
        self, bounds: tuple[float, float] = (-float("inf"), float("inf")), headroom: float = 0.0
    ) -> QuantizationSpec:
        """Return how an activation is observed; nothing tells values outside `bounds` apart."""
        if self.scheme.activation_bits == 16:
            kind = {
                "dtype": torch.int16,
                "quant_min": -32767,
                "quant_max": 32767,
                "qscheme": torch.per_tensor_symmetric,
            }
        else:
            kind = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127, "qscheme": torch.per_tensor_affine}
        options = {"estimator": self.estimator, "lower": bounds[0], "upper": bounds[1], "headroom": headroom}
        if self.training:
            return QuantizationSpec(
                observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=RangeObserver, **options), **kind
            )
        return QuantizationSpec(observer_or_fake_quant_ctr=RangeObserver.with_args(**options), **kind)

    @classmethod
    def of(cls, scheme: Scheme, options: QuantizationOptions) -> EdgeQuantizer:
        """Return the quantizer that the options ask for."""
        return cls(
            scheme, estimator=options.estimator, keep_float=options.keep_float, reduce_range=options.reduce_range
        )

    def weight(self, channel_axis: int) -> QuantizationSpec:
        """Return how a layer's weight is quantized."""
        observer = PerChannelWeightObserver
        return QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelFakeQuantize.with_args(observer=observer)
            if self.training
            else observer.with_args(),
            quant_min=-self.largest_weight,
            quant_max=self.largest_weight,
            qscheme=torch.per_channel_symmetric,
            ch_axis=channel_axis,
        )

    def _stays_float(self, unit: Unit) -> bool:
        return unit.is_named_in(self.keep_float) or (unit.kind == "matmul" and not self.matmuls)

    def _annotate_unit(self, unit: Unit, wanted: set[Node]) -> None:
        node = unit.first
        if unit.kind == "embedding":
            weight = node.args[0]
            assert isinstance(weight, Node) and unit.channel_axis is not None
            _annotate(node, {weight: self.weight(unit.channel_axis)}, None)
            return
        inputs: dict[Node, Any] = {}
        if unit.is_layer or unit.kind == "matmul":
            inputs = {operand: self.activation() for operand in unit.operands}
        elif node not in wanted or not any(_is_integer(o) for o in unit.operands):
            return
        elif unit.kind == "concatenation":
            self._concatenation(unit)
            return
        elif unit.kind in ("sum", "product"):
            inputs = {operand: self.activation() for operand in unit.operands}
        if unit.is_layer:
            weight = node.args[1]
            assert isinstance(weight, Node) and unit.channel_axis is not None
            inputs[weight] = self.weight(unit.channel_axis)
        has_mask = node.target is torch.ops.aten.baddbmm.default
        few = unit.last is node and shape_of(node)[:1] == self._batch and set(shape_of(node)[2:]) <= {1}
        output = None if has_mask else self.activation(domain_of(unit.last), HEADROOM if few else 0.0)
        _annotate(node, inputs, output if unit.last is node else None)
        if unit.last is not node:
            _annotate(unit.last, {}, output)

    def _concatenation(self, unit: Unit) -> None:
        first = unit.operands[0]
        shared = SharedQuantizationSpec((first, unit.first))
        inputs: dict[Node, Any] = dict.fromkeys(unit.operands, shared)
        inputs[first] = self.activation()
        _annotate(unit.first, inputs, shared)


def _keep_scale(node: Node) -> None:
    source = node.args[0]
    while isinstance(source, Node) and not isinstance(source.meta.get("val"), torch.Tensor):
        source = source.args[0]  # the tensor that a chunk or split took apart
    if not isinstance(source, Node) or not is_float(node) or not _is_integer(source):
        return  # its input stays in float, so it does too
    shared = SharedQuantizationSpec(source)
    _annotate(node, {source: shared} if source is node.args[0] else {}, shared)


def _is_integer(node: Node) -> bool:
    annotation = node.meta.get(ANNOTATION)
    return annotation is not None and annotation.output_qspec is not None


def _annotate(node: Node, inputs: dict[Node, Any], output: Any) -> None:
    node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)
