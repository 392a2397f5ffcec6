"""What a quantizer's annotations ask for, claim by claim, and the integer grids that answer them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, SharedQuantizationSpec

from edgeopt.core.errors import ConversionError
from edgeopt.core.quantization import Scheme
from edgeopt.stages.quantizer import ANNOTATION


@dataclass(frozen=True)
class Step:
    """An integer grid: real = scale · (stored − zero_point), stored within [low, high]; `None` scale is dynamic."""

    scale: float | None
    zero_point: int
    low: int
    high: int

    def apply(self, value: torch.Tensor) -> torch.Tensor:
        """Return the value rounded to the grid; gradients pass where it is not clipped."""
        if self.scale is not None and not value.requires_grad:
            stored = torch.mul(value, 1 / self.scale).round_()
            return stored.clamp_(self.low - self.zero_point, self.high - self.zero_point).mul_(self.scale)
        if self.scale is not None:
            return torch.fake_quantize_per_tensor_affine(value, self.scale, self.zero_point, self.low, self.high)
        flat = value.detach().flatten(1) if value.ndim > 1 else value.detach().reshape(len(value), -1)
        shape = (-1, *[1] * (value.ndim - 1))
        lowest = flat.amin(1).clamp(max=0).reshape(shape)
        scale = ((flat.amax(1).clamp(min=0).reshape(shape) - lowest) / (self.high - self.low)).clamp(min=1e-9)
        zero = self.low - torch.round(lowest / scale)
        stored = torch.clamp(torch.round(value / scale) + zero, self.low, self.high)
        return value + ((stored - zero) * scale - value).detach()


@dataclass(frozen=True)
class Claim:
    """One wish of an annotated node: that a value is quantized.

    Attributes:
        node: annotated; it reads the value or makes it.
        value: to quantize.
        consumer: who sees it quantized; None for everyone who reads it.
        spec: how.
        shares_with: a value whose grid it must have.
    """

    node: Node
    value: Node
    consumer: Node | None
    spec: QuantizationSpec
    shares_with: Node | None


def claims_of(module: GraphModule) -> Iterator[Claim]:
    """Yield what the annotations of a graph ask for, in the order of execution."""
    for node in module.graph.nodes:
        annotation = _annotation(node)
        if annotation is None:
            continue
        sides: list[tuple[Node, Node | None, Any]] = [(a, node, s) for a, s in annotation.input_qspec_map.items()]
        if annotation.output_qspec is not None:
            sides.append((node, None, annotation.output_qspec))
        for value, consumer, wanted in sides:
            spec, shared = _resolve(wanted)
            if isinstance(spec, QuantizationSpec):
                yield Claim(node, value, consumer, spec, shared)


def told(spec: QuantizationSpec) -> str:
    """Return what tells the observers of two specifications apart."""
    partial = getattr(spec.observer_or_fake_quant_ctr, "p", None)
    return f"{spec.dtype} {spec.quant_min} {spec.quant_max} {spec.qscheme} {getattr(partial, 'keywords', id(spec))}"


def observer_of(spec: QuantizationSpec) -> Any:
    """Build the observer as `prepare_pt2e` does: with what of the specification it takes."""
    wanted = {
        "dtype": spec.dtype,
        "qscheme": spec.qscheme,
        "quant_min": spec.quant_min,
        "quant_max": spec.quant_max,
        "is_dynamic": spec.is_dynamic,
    }
    return spec.observer_or_fake_quant_ctr(**{k: v for k, v in wanted.items() if v is not None})


def step_of(observer: Any, scheme: Scheme) -> Step:
    """Return the grid that an observer, which has seen the samples, gives."""
    if scheme.kind == "dynamic":
        return Step(None, 0, observer.quant_min, observer.quant_max)
    scale, zero_point = observer.calculate_qparams()
    return Step(float(scale), int(zero_point), observer.quant_min, observer.quant_max)


def covering(steps: list[Step]) -> Step:
    """Return one grid that covers all of these."""
    first = steps[0]
    if all(s == first for s in steps) or first.scale is None:
        return first
    spans = [((s.low - s.zero_point) * s.scale, (s.high - s.zero_point) * s.scale) for s in steps if s.scale]
    lowest, highest = min(a for a, _ in spans), max(b for _, b in spans)
    scale = (highest - lowest) / (first.high - first.low)
    symmetric = all(s.zero_point == 0 for s in steps)
    return Step(scale, 0 if symmetric else first.low - round(lowest / scale), first.low, first.high)


def _annotation(node: Node) -> QuantizationAnnotation | None:
    return node.meta.get(ANNOTATION)


def _resolve(spec: Any) -> tuple[Any, Node | None]:
    """Return the specification behind a shared one, and the value that it is shared with."""
    shared = None
    for _ in range(1000):
        if not isinstance(spec, SharedQuantizationSpec):
            return spec, shared
        place = spec.edge_or_node
        if isinstance(place, Node):
            shared = shared or place
            annotation = _annotation(place)
            spec = annotation.output_qspec if annotation else None
        else:
            shared = shared or place[0]
            annotation = _annotation(place[1])
            spec = annotation.input_qspec_map.get(place[0]) if annotation else None
    raise ConversionError("the quantizer's shared specifications run in a circle")
