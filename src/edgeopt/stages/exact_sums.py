"""Scales with which all integer kernels add alike.

Kernels bring the operands of a sum to its scale in fixed point of some 20 bits (XNNPACK) or in float32 (ONNX Runtime),
and take the middle between two integers up, or to the even one. They disagree where a result lies in the middle or
within their own error of it. Where the scale of the sum is an odd number of steps, and those of its operands are
numbers of the same step, every result is a multiple of 1/odd: it is never in the middle, nor nearer to it than half of
that, 1/4094 at least, which is more than those errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch.fx import GraphModule, Node

from edgeopt.stages.half_scales import BITS
from edgeopt.stages.observers import RangeObserver
from edgeopt.stages.units import SUMS, clamp_after

FEWEST_STEPS = 128
"""Of a scale; rounding one that is smaller, beside the largest of its sums, would cost more than a percent."""


Sum = tuple[RangeObserver, RangeObserver, RangeObserver]


def align_sums(prepared: GraphModule) -> int:
    """Fix the scales of the sums of a calibrated graph, and of what they add; returns how many were fixed."""
    return fix_scales(_sums(prepared))


def fix_scales(sums: Iterable[Sum]) -> int:
    """Fix the scales of observers, those of two operands and of their sum each; returns how many were fixed.

    Sums that share an operand, as those along a residual network do, share a step. Scales become at most 1.6 percent
    smaller (0.4 where they lie within a factor of four of the largest); where that is not enough they stay.
    """
    eight_bits = [s for s in sums if not any(observer.symmetric for observer in s)]
    results = {result for *_, result in eight_bits}
    fixed = 0
    for group in _connected(eight_bits):
        scales = {observer: float(observer.calculate_qparams()[0]) for observer in group}
        step = math.ldexp(1.0, math.frexp(max(scales.values()))[1] - BITS)
        counts = {observer: math.floor(scale / step) for observer, scale in scales.items()}
        if min(counts.values()) < FEWEST_STEPS:
            continue
        for observer, count in counts.items():
            observer.fixed_scale = (count - (1 - count % 2) if observer in results else count) * step
            fixed += 1
    return fixed


def _sums(prepared: GraphModule) -> Iterator[Sum]:
    """Yield the observers of both operands and of the result of each sum that is quantized."""
    for node in prepared.graph.nodes:
        if node.op != "call_function" or node.target not in SUMS:
            continue
        last = (node, *clamp_after(node))[-1]
        found = [_observer(prepared, a) for a in node.args[:2]]
        found.append(next((o for user in last.users if (o := _observer(prepared, user)) is not None), None))
        first, second, result = found if len(found) == 3 else (None, None, None)
        if first is not None and second is not None and result is not None:
            yield first, second, result


def _observer(prepared: GraphModule, node: object) -> RangeObserver | None:
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    found = prepared.get_submodule(str(node.target))
    return found if isinstance(found, RangeObserver) else None


def _connected(sums: Iterable[Sum]) -> list[set[RangeObserver]]:
    groups: list[set[RangeObserver]] = []
    for observers in sums:
        together: set[RangeObserver] = set(observers)
        for group in [g for g in groups if g & together]:
            together |= group
            groups.remove(group)
        groups.append(together)
    return groups
