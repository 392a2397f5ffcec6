"""Shapes and layouts: reshape, transpose, concatenate, split, tile, pad, depth and space."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder


def reshape(g: GraphBuilder, node: Node) -> Value:
    """Reshape → torch.reshape; a 0 copies the input's dimension unless `allowzero`.

    A first dimension that stays as it is becomes -1: the batch, which may then be any.
    """
    x = node.input(0)
    wanted = node.ints_at(1, "shape") or []
    size = g.shape(x)
    if not node.attr_int("allowzero"):
        if any(d == 0 and i >= len(size) for i, d in enumerate(wanted)):
            raise SourceError(f"Reshape at {node.place} copies a dimension that its input lacks; the file is damaged")
        wanted = [size[i] if d == 0 else d for i, d in enumerate(wanted)]
    if len(wanted) > 1 and len(size) > 0 and wanted[0] == size[0] > 0 and min(wanted[1:]) > 0:
        wanted = [-1, *wanted[1:]]
    return g.call(torch.reshape, x, tuple(wanted))


def flatten(g: GraphBuilder, node: Node) -> Value:
    """Flatten → torch.flatten where the batch stays first, else torch.reshape to a matrix."""
    x, axis = node.input(0), node.attr_int("axis", 1)
    size = g.shape(x)
    axis = axis + len(size) if axis < 0 else axis
    if axis == 1 and len(size) > 1:
        return g.call(torch.flatten, x, 1)
    return g.call(torch.reshape, x, (math.prod(size[:axis]), math.prod(size[axis:])))


def transpose(g: GraphBuilder, node: Node) -> Value:
    """Transpose → torch.permute."""
    order = node.attr_ints("perm") or list(reversed(range(g.rank(node.input(0)))))
    return g.call(torch.permute, node.input(0), tuple(order))


def squeeze(g: GraphBuilder, node: Node) -> Value:
    """Squeeze → torch.squeeze of the named axes, or of all of size one."""
    x, axes = node.input(0), node.ints_at(1, "axes")
    if axes is None:
        axes = [i for i, d in enumerate(g.shape(x)) if d == 1]
    return g.call(torch.squeeze, x, tuple(axes))


def unsqueeze(g: GraphBuilder, node: Node) -> Value:
    """Unsqueeze → torch.unsqueeze, once per axis, counted in the result."""
    x, axes = node.input(0), node.ints_at(1, "axes") or []
    rank = g.rank(x) + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = g.call(torch.unsqueeze, x, axis)
    return x


def concat(g: GraphBuilder, node: Node) -> Value:
    """Concat → torch.cat."""
    return g.call(torch.cat, [node.input(i) for i in range(len(node.inputs))], node.attr_int("axis", 1))


def split(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """Split → torch.split by the given sizes, or into as many parts as there are outputs."""
    x, axis, count = node.input(0), node.attr_int("axis"), len(node.proto.output)
    sizes = node.ints_at(1, "split")
    if sizes is None:
        total = g.shape(x)[axis]
        each = -(-total // count)
        sizes = [max(min(each, total - i * each), 0) for i in range(count)]
    parts = g.call(torch.split, x, sizes, axis)
    return tuple(g.unpack(parts, i) for i in range(count))


def expand(g: GraphBuilder, node: Node) -> Value:
    """Expand → torch.expand to the shape that both broadcast to."""
    x = node.input(0)
    wanted = tuple(node.ints_at(1, "shape") or ())
    rank = max(len(wanted), g.rank(x))
    ours, theirs = ((1,) * (rank - len(s)) + s for s in (g.shape(x), wanted))
    return g.call(torch.Tensor.expand, x, tuple(t if o == 1 else o for o, t in zip(ours, theirs, strict=True)))


def tile(g: GraphBuilder, node: Node) -> Value:
    """Tile → torch.tile."""
    return g.call(torch.tile, node.input(0), tuple(node.ints_at(1, "repeats") or ()))


def pad(g: GraphBuilder, node: Node) -> Value:
    """Pad → F.pad; modes that F.pad lacks for these axes pick rows by constant indices."""
    x, mode, rank = node.input(0), node.attr_text("mode", "constant"), g.rank(node.input(0))
    pads = node.ints_at(1, "pads") or []
    axes = node.ints_at(3, "axes")
    axes = list(range(rank)) if axes is None else [a % rank for a in axes]
    if len(pads) != 2 * len(axes):
        raise SourceError(f"Pad at {node.place} has {len(pads)} pads for {len(axes)} axes; the file is damaged")
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    if mode == "constant":
        fill: float = node.constant(2).item() if node.has(2) else node.attr_float("value", 0.0)
        first = next((i for i in range(rank) if before[i] or after[i]), rank)
        argument = [p for i in range(rank - 1, first - 1, -1) for p in (before[i], after[i])]
        return g.call(F.pad, x, argument, value=fill) if argument else g.call(torch.clone, x)
    if mode not in ("reflect", "edge", "wrap"):
        raise node.unsupported(f"its mode is {mode!r}")
    spatial = rank - 2
    if mode != "wrap" and 1 <= spatial <= 3 and not any(before[:2] + after[:2]) and min(before + after) >= 0:
        argument = [p for i in range(rank - 1, 1, -1) for p in (before[i], after[i])]
        return g.call(F.pad, x, argument, mode={"reflect": "reflect", "edge": "replicate"}[mode])
    for axis in range(rank):
        if before[axis] or after[axis]:
            rows = _source_index(g.shape(x)[axis], before[axis], after[axis], mode)
            x = g.call(torch.index_select, x, axis, rows)
    return x


def _source_index(size: int, before: int, after: int, mode: str) -> torch.Tensor:
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.where(index >= size, period - index, index)


def depth_to_space(g: GraphBuilder, node: Node) -> Value:
    """DepthToSpace → F.pixel_shuffle (CRD), or the same after reordering channels (DCR)."""
    x, block = node.input(0), node.attr_int("blocksize")
    batch, channels, height, width = g.shape(x)
    if node.attr_text("mode", "DCR") == "DCR":
        parts = g.call(torch.reshape, x, (batch, block * block, channels // block**2, height, width))
        x = g.call(torch.reshape, g.call(torch.transpose, parts, 1, 2), (batch, channels, height, width))
    return g.call(F.pixel_shuffle, x, block)


def space_to_depth(g: GraphBuilder, node: Node) -> Value:
    """SpaceToDepth → F.pixel_unshuffle with its channels reordered."""
    x, block = node.input(0), node.attr_int("blocksize")
    batch, channels, height, width = g.shape(x)
    y = g.call(F.pixel_unshuffle, x, block)
    size = (batch, channels, block * block, height // block, width // block)
    parts = g.call(torch.transpose, g.call(torch.reshape, y, size), 1, 2)
    return g.call(torch.reshape, parts, (batch, channels * block * block, *size[3:]))


def shape_of(g: GraphBuilder, node: Node) -> Value:
    """Shape → a constant, since every shape is fixed."""
    size = g.shape(node.input(0))
    end = node.attr_int("end", len(size))
    return torch.tensor(size[node.attr_int("start") : end], dtype=torch.int64)


def size_of(g: GraphBuilder, node: Node) -> Value:
    """Size → a constant."""
    return torch.tensor(math.prod(g.shape(node.input(0))), dtype=torch.int64)


OPS: dict[str, Builder] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
