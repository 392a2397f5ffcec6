"""What changes shape or order and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.mil.ops.linear import Tensors
from edgeopt.mil.ops.spatial import Ints

Bools = tuple[bool, ...]


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """Give `x` a new shape: -1 takes what is left, 0 copies the dimension that stands as far from the right end."""
    offset = len(shape) - x.ndim
    sizes = [s if s != 0 else (x.shape[i - offset] if i >= offset else 1) for i, s in enumerate(shape)]
    return x.reshape(sizes)


def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """Give `x` the joined slices of the reference tensors' shapes."""
    sizes: list[int] = []
    for ref, begin, end, to_the_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[begin:] if to_the_end else ref.shape[begin:end]
    return x.reshape(sizes)


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Insert dimensions of size 1 at `axes` of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Drop dimensions of size 1, those at `axes` or all of them."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Permute dimensions."""
    return x.permute(perm)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Flatten the dimensions before and from `axis` into two."""
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _slices(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> list[range | int]:
    """Resolve NumPy-style bounds into the positions taken in each dimension, one number where it is squeezed."""
    result: list[range | int] = []
    for i, size in enumerate(x.shape):
        if squeeze_mask and squeeze_mask[i]:
            start = 0 if begin_mask and begin_mask[i] else begin[i]
            result.append(range(size)[start])
            continue
        first = None if begin_mask and begin_mask[i] else begin[i]
        last = None if end_mask and end_mask[i] else end[i]
        result.append(range(size)[first : last : stride[i] if stride else 1])
    return result


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """NumPy slicing; masks stand for an absent bound, `squeeze_mask` for plain indexing."""
    dropped = 0
    for i, taken in enumerate(_slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)):
        axis = i - dropped
        if isinstance(taken, int):
            x = x.select(axis, taken)
            dropped += 1
        elif taken.step > 0:
            if len(taken) != x.shape[axis]:
                x = x[(slice(None),) * axis + (slice(taken.start, taken.stop, taken.step),)]
        else:
            x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64))
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Copy of `x` with a slice replaced by `update`."""
    result = x.clone()
    positions = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    index = [torch.tensor([p] if isinstance(p, int) else list(p), dtype=torch.int64) for p in positions]
    grid = torch.meshgrid(index, indexing="ij")
    result[grid] = update.reshape(grid[0].shape).to(x.dtype)
    return result


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """Take `size` elements from `begin` in each dimension, all that follow where size is -1."""
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        start = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    """Cut along `axis` into parts of the given sizes, or into equal ones."""
    if split_sizes is None:
        if num_splits is None or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} elements cannot be cut into {num_splits} equal parts")
        split_sizes = (x.shape[axis] // num_splits,) * num_splits
    return torch.split(x, list(split_sizes), axis)


def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Join along `axis`, element by element in turn when interleaved."""
    if not interleave:
        return torch.cat(values, axis)
    axis = axis % values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(values: Tensors, axis: int) -> Tensor:
    """Join along a new dimension."""
    return torch.stack(values, axis)


def tile(x: Tensor, reps: Ints) -> Tensor:
    """Repeat along each dimension."""
    return x.repeat(reps)


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Flip `axes`, all where none are given."""
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Flip the first `lengths[i]` elements along `seq_axis` of the i-th slice along `batch_axis`."""
    moved = x.movedim((batch_axis, seq_axis), (0, 1)).clone()
    for row, length in zip(moved, lengths, strict=True):
        row[:length] = row[:length].flip(0)
    return moved.movedim((0, 1), (batch_axis, seq_axis))


def _mirror(size: int, before: int, after: int, mode: str) -> list[int]:
    """Positions that padding by `reflect` (edge not repeated) or `replicate` takes from."""
    last = size - 1
    if mode == "replicate":
        return [min(max(i, 0), last) for i in range(-before, size + after)]
    return [i if 0 <= i <= last else (-i if i < 0 else 2 * last - i) for i in range(-before, size + after)]


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last len(pad) / 2 dimensions, (before, after) for each from the left."""
    count = len(pad) // 2
    pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(count)]
    if mode == "constant":
        return functional.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - count):
        if before or after:
            x = x.index_select(axis, torch.tensor(_mirror(x.shape[axis], before, after, mode)))
    return x


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Move channel blocks into space, block offset slowest: [N, b * b * C, H, W] to [N, C, H * b, W * b]."""
    n, c, h, w = x.shape
    b = block_size
    blocks = x.reshape(n, b, b, c // (b * b), h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """Inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """Move spatial blocks of `x` [N, C, H, W] into the batch after zero padding [[top, bottom], [left, right]]."""
    top, bottom, left, right = paddings
    x = functional.pad(x, [left, right, top, bottom])
    (n, c, h, w), (bh, bw) = x.shape, block_shape
    blocks = x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4)
    return blocks.reshape(n * bh * bw, c, h // bh, w // bw)


def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """Inverse of `space_to_batch`, cropping instead of padding."""
    (n, c, h, w), (bh, bw) = x.shape, block_shape
    whole = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = whole.reshape(n // (bh * bw), c, h * bh, w * bw)
    top, bottom, left, right = crops
    return whole[:, :, top : h * bh - bottom, left : w * bw - right]


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """[N, C * f * f, H, W] to [N, C, H * f, W * f], channel slowest (Shi et al. 2016)."""
    return functional.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """Inverse of `pixel_shuffle`."""
    return functional.pixel_unshuffle(x, downscale_factor)


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows along `axis`; the window becomes the dimension behind it."""
    axis = axis % x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


OPS: dict[str, Callable[..., Any]] = {
    "batch_to_space": batch_to_space,
    "concat": concat,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "flatten2d": flatten2d,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "reshape": reshape,
    "reshape_like": reshape_like,
    "reverse": reverse,
    "reverse_sequence": reverse_sequence,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": sliding_windows,
    "space_to_batch": space_to_batch,
    "space_to_depth": space_to_depth,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
}
