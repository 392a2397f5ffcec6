"""Resize and Upsample.

Each axis is resampled on its own, so any coordinate rule is a constant matrix [output, input] of weights. Where
PyTorch's own interpolation has the same weights it is used; else rows are picked by constant indices (nearest), or the
axis is multiplied by its matrix (linear, cubic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.tensors import check_elements

_NATIVE_NEAREST = {"nearest": ("asymmetric", "floor"), "nearest-exact": ("half_pixel", "round_prefer_ceil")}


@dataclass(frozen=True)
class Rule:
    """How an output coordinate finds its source, with the attribute values of ONNX."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True)
class Axis:
    """One axis to resample."""

    index: int
    size: int
    target: int
    scale: float
    roi: tuple[float, float]


def resize(g: GraphBuilder, node: Node) -> Value:
    """Resize → F.interpolate where it computes the same, else constant indices or matrices per axis."""
    x = node.input(0)
    rule = Rule(
        mode=node.attr_text("mode", "nearest"),
        coordinates=node.attr_text("coordinate_transformation_mode", "half_pixel" if node.opset > 10 else "asymmetric"),
        nearest=node.attr_text("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor"),
        cubic_a=node.attr_float("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.attr_int("exclude_outside")),
        antialias=bool(node.attr_int("antialias")),
        extrapolation=node.attr_float("extrapolation_value", 0.0),
    )
    return _resample(g, node, x, rule, _axes(g, node, x, rule))


def upsample(g: GraphBuilder, node: Node) -> Value:
    """Upsample (opset 9 and before) → the same with its coordinate rule."""
    x = node.input(0)
    scales = [float(s) for s in (node.constant(1).tolist() if node.has(1) else node.attributes["scales"])]
    size = g.shape(x)
    axes = [
        Axis(i, n, math.floor(n * s), s, (0.0, 1.0))
        for i, (n, s) in enumerate(zip(size, scales, strict=True))
        if math.floor(n * s) != n
    ]
    rule = Rule(node.attr_text("mode", "nearest"), "asymmetric", "floor", -0.75, False, False, 0.0)
    return _resample(g, node, x, rule, axes)


def _axes(g: GraphBuilder, node: Node, x: Value, rule: Rule) -> list[Axis]:
    rank, size = g.rank(x), g.shape(x)
    chosen = node.attr_ints("axes")
    chosen = list(range(rank)) if chosen is None else [a % rank for a in chosen]
    scales_at = 2 if node.opset > 10 else 1
    scales = [float(s) for s in node.constant(scales_at).tolist()] if node.has(scales_at) else []
    sizes = [int(s) for s in node.constant(3).tolist()] if node.has(3) else []
    if len(scales) not in (0, len(chosen)) or len(sizes) not in (0, len(chosen)) or not (scales or sizes):
        raise SourceError(f"Resize at {node.place} gives no scale or size for its {len(chosen)} axes")
    policy = node.attr_text("keep_aspect_ratio_policy", "stretch")
    if sizes and policy != "stretch":
        ratios = [s / size[a] for s, a in zip(sizes, chosen, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        scales = [ratio] * len(chosen)
        sizes = [math.floor(ratio * size[a] + 0.5) for a in chosen]
    roi = [float(r) for r in node.constant(1).tolist()] if rule.coordinates == "tf_crop_and_resize" else []
    if roi and len(roi) != 2 * len(chosen):
        raise SourceError(f"Resize at {node.place} has {len(roi)} values of roi for {len(chosen)} axes")
    axes = []
    for i, axis in enumerate(chosen):
        span = (roi[i], roi[i + len(chosen)]) if roi else (0.0, 1.0)
        if sizes:
            target, scale = sizes[i], scales[i] if scales else sizes[i] / size[axis]
        else:
            length = size[axis] * (span[1] - span[0]) if roi else size[axis]
            target, scale = math.floor(length * scales[i]), scales[i]
        axes.append(Axis(axis, size[axis], target, scale, span))
    result = list(size)
    for a in axes:
        result[a.index] = a.target
    check_elements(tuple(result), f"the result of Resize at {node.place}")
    return [a for a in axes if a.target != a.size or a.scale != 1 or roi]


def _resample(g: GraphBuilder, node: Node, x: Value, rule: Rule, axes: list[Axis]) -> Value:
    if rule.mode not in ("nearest", "linear", "cubic"):
        raise node.unsupported(f"its mode is {rule.mode!r}")
    if not axes:
        return g.call(torch.clone, x)
    native = _interpolate(g, x, rule, axes)
    if native is not None:
        return native
    stored, rank = g.dtype(x), g.rank(x)
    outside = torch.zeros((1,) * rank, dtype=torch.bool)
    if rule.mode != "nearest" and not stored.is_floating_point:
        x = g.call(torch.Tensor.to, x, torch.float32)
    for axis in axes:
        coordinates = _coordinates(rule, axis)
        if rule.coordinates == "tf_crop_and_resize":
            beyond = (coordinates < 0) | (coordinates > axis.size - 1)
            outside = outside | beyond.reshape([-1 if i == axis.index else 1 for i in range(rank)])
        if rule.mode == "nearest":
            x = g.call(torch.index_select, x, axis.index, _nearest_index(rule, axis, coordinates))
        else:
            matrix = _matrix(rule, axis, coordinates)
            moved = g.call(torch.movedim, x, axis.index, -1)
            product = g.call(torch.matmul, moved, matrix.t().contiguous().to(g.dtype(x)))
            x = g.call(torch.movedim, product, -1, axis.index)
    if bool(outside.any()):
        x = g.call(torch.where, outside, torch.tensor(rule.extrapolation, dtype=g.dtype(x)), x)
    if g.dtype(x) != stored:
        limits = torch.iinfo(stored)
        x = g.call(torch.Tensor.to, g.call(torch.clamp, x, min=limits.min, max=limits.max), stored)
    return x


def _interpolate(g: GraphBuilder, x: Value, rule: Rule, axes: list[Axis]) -> Value | None:
    """Return F.interpolate of `x` if that has the weights that `rule` asks for, else None."""
    spatial = g.rank(x) - 2
    if spatial not in (1, 2, 3) or any(a.index < 2 for a in axes) or rule.antialias or not g.is_float(x):
        return None
    target = list(g.shape(x)[2:])
    for axis in axes:
        target[axis.index - 2] = axis.target
    if rule.mode == "nearest":
        for mode, native in _NATIVE_NEAREST.items():
            exact = Rule("nearest", *native, rule.cubic_a, False, False, 0.0)
            if all(_same_index(rule, exact, axis) for axis in axes):
                return g.call(F.interpolate, x, size=target, mode=mode)
        return None
    if rule.mode == "cubic" and (spatial != 2 or rule.cubic_a != -0.75 or rule.exclude_outside):
        return None
    mode = "bicubic" if rule.mode == "cubic" else {1: "linear", 2: "bilinear", 3: "trilinear"}[spatial]
    for corners in (False, True):
        native_rule = "align_corners" if corners else "half_pixel"
        if all(_same_coordinates(rule, native_rule, axis) for axis in axes):
            return g.call(F.interpolate, x, size=target, mode=mode, align_corners=corners)
    return None


def _native_axis(axis: Axis) -> Axis:
    return Axis(axis.index, axis.size, axis.target, axis.target / axis.size, (0.0, 1.0))


def _same_index(rule: Rule, native: Rule, axis: Axis) -> bool:
    theirs = _native_axis(axis)
    ours = _nearest_index(rule, axis, _coordinates(rule, axis))
    return bool((ours == _nearest_index(native, theirs, _coordinates(native, theirs))).all())


def _same_coordinates(rule: Rule, native: str, axis: Axis) -> bool:
    theirs = _coordinates(Rule("linear", native, "", 0, False, False, 0), _native_axis(axis))
    return torch.allclose(_coordinates(rule, axis), theirs, rtol=0, atol=1e-6)


def _coordinates(rule: Rule, axis: Axis) -> torch.Tensor:
    """Return the source coordinate of each output element of `axis`, float64 [target]."""
    out = torch.arange(axis.target, dtype=torch.float64)
    scale, last, kind = axis.scale, axis.size - 1, rule.coordinates
    if kind == "asymmetric":
        return out / scale
    if kind == "align_corners":
        return out * last / (axis.target - 1) if axis.target > 1 else torch.zeros_like(out)
    if kind == "pytorch_half_pixel":
        return (out + 0.5) / scale - 0.5 if axis.target > 1 else torch.zeros_like(out)
    if kind == "half_pixel_symmetric":
        adjustment = axis.target / (axis.size * scale)
        centre = axis.size / 2
        return centre * (1 - adjustment) + (out + 0.5) / scale - 0.5
    if kind == "tf_half_pixel_for_nn":
        return (out + 0.5) / scale
    if kind == "tf_crop_and_resize":
        start, end = axis.roi
        if axis.target > 1:
            return start * last + out * (end - start) * last / (axis.target - 1)
        return torch.full_like(out, 0.5 * (start + end) * last)
    if kind == "half_pixel":
        return (out + 0.5) / scale - 0.5
    raise SourceError(f"Resize has coordinate_transformation_mode {kind!r}, which does not exist; the file is damaged")


def _nearest_index(rule: Rule, axis: Axis, coordinates: torch.Tensor) -> torch.Tensor:
    if rule.nearest == "floor":
        index = torch.floor(coordinates + 1e-9)
    elif rule.nearest == "ceil":
        index = torch.ceil(coordinates - 1e-9)
    elif rule.nearest == "round_prefer_ceil":
        index = torch.floor(coordinates + 0.5 + 1e-9)
    else:
        index = torch.ceil(coordinates - 0.5 - 1e-9)
    return index.clamp(0, axis.size - 1).to(torch.int64)


def _matrix(rule: Rule, axis: Axis, coordinates: torch.Tensor) -> torch.Tensor:
    """Return the weights of each output element over the input, float64 [target, size]; rows sum to one."""
    stretch = max(1 / axis.scale, 1.0) if rule.antialias else 1.0
    reach = math.ceil((1 if rule.mode == "linear" else 2) * stretch)
    floor = torch.floor(coordinates)
    taps = floor[:, None] + torch.arange(1 - reach, reach + 1, dtype=torch.float64)[None, :]
    distance = (taps - coordinates[:, None]).abs() / stretch
    weights = (1 - distance).clamp(min=0) if rule.mode == "linear" else _cubic(distance, rule.cubic_a)
    inside = (taps >= 0) & (taps <= axis.size - 1)
    if rule.exclude_outside:
        weights = torch.where(inside, weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(axis.target, axis.size, dtype=torch.float64)
    return matrix.scatter_add(1, taps.clamp(0, axis.size - 1).to(torch.int64), weights)


def _cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' cubic convolution kernel (1981) with free parameter `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


OPS: dict[str, Builder] = {"Resize": resize, "Upsample": upsample}
