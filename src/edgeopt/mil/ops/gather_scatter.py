"""Reading and writing at indices.

Negative indices count from the end, as the iOS 15 and 16 versions say; from iOS 17 on they are undefined on a device.
An index outside is an error here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_REDUCE = {"add": "sum", "sub": "sum", "mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


def _wrap(indices: Tensor, size: int) -> Tensor:
    """Return int64 indices with negative ones counted from the end.

    Raises:
        IndexError: one lies outside.
    """
    wrapped = indices.long()
    wrapped = torch.where(wrapped < 0, wrapped + size, wrapped)
    if wrapped.numel() and (int(wrapped.min()) < 0 or int(wrapped.max()) >= size):
        raise IndexError(f"an index lies outside a dimension of {size}")
    return wrapped


def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0) -> Tensor:
    """Take slices along `axis`; the result has shape x[:axis] + indices[batch_dims:] + x[axis + 1:]."""
    axis = axis % x.ndim
    flat = _wrap(indices, x.shape[axis])
    if batch_dims == 0:
        taken = x.index_select(axis, flat.reshape(-1))
        return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    rows = [gather(part, index, axis - 1, batch_dims - 1) for part, index in zip(x, indices, strict=True)]
    return torch.stack(rows)


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """Take one element for each index, dimensions other than `axis` paired up."""
    return torch.gather(x, axis, _wrap(indices, x.shape[axis]))


def _position(indices: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Split index tuples (last dimension) into one index tensor for each dimension of `shape` they address."""
    return tuple(_wrap(indices[..., i], shape[i]) for i in range(indices.shape[-1]))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """Take the slices that the index tuples in the last dimension of `indices` name."""
    if batch_dims == 0:
        return x[_position(indices, x.shape)]
    return torch.stack([gather_nd(part, index, batch_dims - 1) for part, index in zip(x, indices, strict=True)])


def _scatter_flat(data: Tensor, where: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Combine `updates` into `data` (both flat) at positions `where`; the last of several updates wins.

    Raises:
        ValueError: the mode is not one of MIL's.
    """
    if mode == "update":
        result = data.clone()
        result[where] = updates
        return result
    if mode not in _REDUCE:
        raise ValueError(f"mode {mode!r} is not update, {', '.join(_REDUCE)}")
    if mode == "sub":
        updates = -updates
    elif mode == "div":
        updates = 1.0 / updates
        data = data.to(updates.dtype)
    return data.scatter_reduce(0, where, updates, _REDUCE[mode], include_self=True)


def scatter_along_axis(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """Combine one update for each index into `data`, dimensions other than `axis` paired up."""
    axis = axis % data.ndim
    grids = list(torch.meshgrid([torch.arange(n) for n in indices.shape], indexing="ij"))
    grids[axis] = _wrap(indices, data.shape[axis])
    return _scatter_flat(data.reshape(-1), _ravel(grids, data.shape), updates.reshape(-1), mode).reshape(data.shape)


def _ravel(position: list[Tensor], shape: torch.Size) -> Tensor:
    """Return flat positions of multi-dimensional ones."""
    flat = torch.zeros_like(position[0])
    for index, size in zip(position, shape, strict=True):
        flat = flat * size + index
    return flat.reshape(-1)


def scatter(data: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, mode: str = "add") -> Tensor:
    """Combine slices into `data` along `axis` at `indices`."""
    axis = axis % data.ndim
    shape = [1] * updates.ndim
    shape[axis : axis + indices.ndim] = indices.shape
    spread = indices.reshape(shape).expand(updates.shape)
    if indices.ndim != 1:
        raise ValueError(f"indices of rank {indices.ndim}, only vectors are defined")
    return scatter_along_axis(data, spread, updates, axis, mode)


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add") -> Tensor:
    """Combine slices into `data` where the index tuples in the last dimension of `indices` say."""
    depth = indices.shape[-1]
    rest = data.shape[depth:]
    inner = 1
    for size in rest:
        inner *= size
    rows = _ravel(list(_position(indices, data.shape)), data.shape[:depth])
    where = (rows[:, None] * inner + torch.arange(inner)[None, :]).reshape(-1)
    return _scatter_flat(data.reshape(-1), where, updates.reshape(-1), mode).reshape(data.shape)


OPS: dict[str, Callable[..., Any]] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
}
