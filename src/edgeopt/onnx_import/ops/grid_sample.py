"""Sampling at computed places."""

from __future__ import annotations

from torch.nn import functional as F  # noqa: N812

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder

_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}
_PADDING = ("zeros", "border", "reflection")


def grid_sample(g: GraphBuilder, node: Node) -> Value:
    """GridSample of images or volumes → F.grid_sample."""
    x = node.input(0)
    mode, padding = node.attr_text("mode", "linear"), node.attr_text("padding_mode", "zeros")
    if mode not in _MODES or padding not in _PADDING or g.rank(x) not in (4, 5) or not g.is_float(x):
        raise node.unsupported(f"its mode is {mode!r} with {padding!r} on {g.rank(x)} dimensions of {g.dtype(x)}")
    if g.rank(x) == 5 and _MODES[mode] == "bicubic":
        raise node.unsupported("it is cubic on a volume")
    return g.call(
        F.grid_sample, x, node.input(1), mode=_MODES[mode], padding_mode=padding,
        align_corners=bool(node.attr_int("align_corners")),
    )  # fmt: skip


OPS: dict[str, Builder] = {"GridSample": grid_sample}
