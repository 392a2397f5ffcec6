"""Sliding-window arithmetic that convolution and pooling share."""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.node import Node


@dataclass(frozen=True)
class Window:
    """Kernel, stride, dilation and padding per spatial axis, in elements."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether both ends of every axis are padded alike, by nothing negative."""
        return self.before == self.after and min(self.before, default=0) >= 0

    @property
    def extent(self) -> tuple[int, ...]:
        """Elements that a dilated kernel spans, per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def pad_argument(self) -> list[int]:
        """Padding in the order of torch.nn.functional.pad: last axis first."""
        return pad_argument(self.before, self.after)


def pad_argument(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Return paddings per axis in the order of torch.nn.functional.pad: last axis first."""
    return [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]


def window_of(node: Node, kernel: tuple[int, ...], spatial: tuple[int, ...]) -> Window:
    """Read the window attributes of a convolution or pooling over an input of size `spatial`.

    Raises:
        SourceError: attributes that do not fit the number of axes.
    """
    rank = len(kernel)
    stride = _per_axis(node, "strides", rank)
    dilation = _per_axis(node, "dilations", rank)
    auto = node.attr_text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(spatial, stride, kernel, dilation, strict=True)
        ]
        small = tuple(t // 2 for t in totals)
        large = tuple(t - t // 2 for t in totals)
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    else:
        pads = [0] * (2 * rank) if auto == "VALID" else node.attr_ints("pads") or [0] * (2 * rank)
        if len(pads) != 2 * rank:
            raise SourceError(f"{node.op} at {node.place} has {len(pads)} pads for {rank} axes; the file is damaged")
        before, after = tuple(pads[:rank]), tuple(pads[rank:])
    return Window(kernel, stride, dilation, before, after)


def _per_axis(node: Node, name: str, rank: int) -> tuple[int, ...]:
    values = node.attr_ints(name) or [1] * rank
    if len(values) != rank or min(values) < 1:
        raise SourceError(f"{node.op} at {node.place} has {name} {values} for {rank} axes; the file is damaged")
    return tuple(values)
