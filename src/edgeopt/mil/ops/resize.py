"""Resampling of images: upsampling, resizing, cropping with resizing, free coordinates.

Linear interpolation reads between two neighbours at the grid points that the sampling mode defines; where torch has
the same grid its kernel is used, elsewhere two small interpolation matrices are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.mil.ops.spatial import Ints


def grid_points(size: float, out: int, mode: str) -> Tensor:
    """Return where along an axis of `size` samples the `out` results are read, unclamped, in float64.

    Raises:
        ValueError: the sampling mode is not one of MIL's.
    """
    i = torch.arange(out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if out == 1:
            middle = (size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
            return torch.full((1,), middle, dtype=torch.float64)
        return i * ((size - 1) / (out - 1))
    if mode == "DEFAULT":
        return i * (size / out)
    if mode == "OFFSET_CORNERS":
        delta = max(1.0, size - 1) / out
        return 0.5 * delta + i * delta
    if mode == "UNALIGN_CORNERS":
        spacing = size / out
        return i * spacing + 0.5 * spacing - 0.5
    raise ValueError(f"sampling mode {mode!r} is unknown")


def _weights(points: Tensor, size: int, nearest: bool, floor: bool = False) -> Tensor:
    """Return the [points, size] matrix that interpolates at `points`, clamped to the samples."""
    points = points.clamp(0, size - 1)
    rows = torch.arange(len(points))
    matrix = torch.zeros(len(points), size, dtype=torch.float64)
    if nearest:
        column = torch.floor(points if floor else points + 0.5).long().clamp(0, size - 1)
        matrix[rows, column] = 1.0
        return matrix
    left = torch.floor(points).long()
    right = (left + 1).clamp(max=size - 1)
    share = points - left
    matrix[rows, left] += 1 - share
    matrix[rows, right] += share
    return matrix


def _resample_axes(x: Tensor, height: int, width: int, mode: str, nearest: bool = False) -> Tensor:
    """Resize the last two dimensions by one matrix each."""
    floor = mode == "DEFAULT"
    rows = _weights(grid_points(x.shape[-2], height, mode), x.shape[-2], nearest, floor).to(x.dtype)
    columns = _weights(grid_points(x.shape[-1], width, mode), x.shape[-1], nearest, floor).to(x.dtype)
    return torch.matmul(torch.matmul(rows, x), columns.T)


def _linear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Bilinear resize of the last two dimensions."""
    if mode == "UNALIGN_CORNERS" or (mode.endswith("ALIGN_CORNERS") and height > 1 and width > 1):
        images = x.reshape(-1, 1, *x.shape[-2:]) if x.ndim != 4 else x
        result = functional.interpolate(
            images, (height, width), mode="bilinear", align_corners=mode != "UNALIGN_CORNERS"
        )
        return result.reshape(*x.shape[:-2], height, width)
    return _resample_axes(x, height, width, mode)


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    """Nearest-neighbour resize: result i reads sample floor(i * size / out)."""
    images = x.reshape(-1, 1, *x.shape[-2:]) if x.ndim != 4 else x
    return functional.interpolate(images, (height, width), mode="nearest").reshape(*x.shape[:-2], height, width)


def _scaled(x: Tensor, scale_height: float, scale_width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * scale_height), math.floor(x.shape[-1] * scale_width)


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    """Enlarge the last two dimensions by factors."""
    return _nearest(x, *_scaled(x, scale_factor_height, scale_factor_width))


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Enlarge the last two dimensions by factors; the spacing follows from the rounded sizes, not from the factors."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else ("UNALIGN_CORNERS" if half else "DEFAULT")
    return _linear(x, *_scaled(x, scale_factor_height, scale_factor_width), mode)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Resize the last two dimensions to a size."""
    return _nearest(x, target_size_height, target_size_width)


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Resize the last two dimensions to a size, on the sampling mode's grid."""
    return _linear(x, target_size_height, target_size_width, sampling_mode)


def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last `resized_dims` dimensions to the last entries of `shape`, 0 meaning unchanged.

    Raises:
        ValueError: more than two dimensions change.
    """
    sizes = [s or x.shape[i - len(shape)] for i, s in enumerate(shape)][len(shape) - resized_dims :]
    if any(s != x.shape[i - len(sizes)] for i, s in enumerate(sizes[:-2])):
        raise ValueError(f"{resized_dims} dimensions resized at once; only the last two are evaluated")
    lifted = x if x.ndim > 1 else x.unsqueeze(0)
    height = sizes[-2] if len(sizes) > 1 else lifted.shape[-2]
    values = lifted if lifted.is_floating_point() else lifted.float()
    if interpolation_mode == "LINEAR":
        result = _linear(values, height, sizes[-1], sampling_mode)
    else:
        result = _resample_axes(values, height, sizes[-1], sampling_mode, nearest=True)
    return result if x.ndim > 1 else result.squeeze(0)


def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Cut (top, bottom) and (left, right) from the last two dimensions."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _corners(box: list[float], mode: str) -> tuple[float, float, float, float]:
    """Return (top, left, bottom, right) of a box in one of MIL's four notations."""
    a, b, c, d = box if mode.endswith("HEIGHT_FIRST") else (box[1], box[0], box[3], box[2])
    return (a, b, c, d) if mode.startswith("CORNERS") else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)


def crop_resize(
    x: Tensor,
    boxes: Tensor | None = None,
    box_indices: Ints | None = None,
    roi: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Cut boxes from `x` [B, C, H, W] and resize each; iOS 17 passes `boxes`, earlier versions `roi` (rank 5).

    Points outside the image read `pad_value`, except half a sample beyond the edge, which reads the edge.
    """
    legacy = boxes is None
    table = roi if boxes is None else boxes
    if table is None:
        raise ValueError("neither boxes nor roi is given")
    rows = table.reshape(table.shape[0], -1).tolist()
    height, width = x.shape[-2:]
    results = []
    for number, row in enumerate(rows):
        image = x
        if len(row) == 5:
            image, row = x[int(row[0])][None], row[1:]
        elif not legacy:
            image = x[box_indices[number] if box_indices is not None else number][None]
        top, left, bottom, right = _corners(row, box_coordinate_mode)
        to_rows, to_columns = (height - 1, width - 1) if normalized_coordinates else (1, 1)
        top, bottom = top * to_rows * spatial_scale, bottom * to_rows * spatial_scale
        left, right = left * to_columns * spatial_scale, right * to_columns * spatial_scale
        at_rows = top + grid_points(bottom - top + 1, target_height, sampling_mode)
        at_columns = left + grid_points(right - left + 1, target_width, sampling_mode)
        value = torch.matmul(
            torch.matmul(_weights(at_rows, height, False).to(x.dtype), image),
            _weights(at_columns, width, False).to(x.dtype).T,
        )
        inside = ((at_rows >= -1) & (at_rows <= height))[:, None] & ((at_columns >= -1) & (at_columns <= width))[None]
        results.append(torch.where(inside, value, torch.full((), pad_value, dtype=x.dtype)))
    return torch.stack(results) if legacy else torch.cat(results)


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Read `x` [B, C, H, W] at `coordinates` [B, H2, W2, 2], given as (x, y)."""
    size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=torch.float32)
    at = coordinates.float()
    if coordinates_mode != "unnormalized":
        unit = (at + 1) / 2 if coordinates_mode == "normalized_minus_one_to_one" else at
        at = unit * (size - 1) if align_corners else unit * size - 0.5
    modes = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
    # torch reflects about sample centres with align_corners and about sample edges without.
    centres = padding_mode == "reflection"
    grid = 2 * at / (size - 1).clamp(min=1) - 1 if centres else (2 * at + 1) / size - 1
    offset = padding_value if padding_mode == "constant" else 0.0
    result = functional.grid_sample(x - offset, grid, sampling_mode, modes[padding_mode], centres)
    return result + offset


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str = "bilinear",
    padding_mode: str = "constant",
    padding_value: float = 0.0,
    coordinates_mode: str = "normalized_minus_one_to_one",
    align_corners: bool = True,
) -> Tensor:
    """Warp `x` [B, C, H, W] by [a0, a1, a2, b0, b1, b2] acting on output positions in [-1, 1]."""
    theta = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    grid = functional.affine_grid(theta, [x.shape[0], x.shape[1], output_height, output_width], align_corners)
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


OPS: dict[str, Callable[..., Any]] = {
    "affine": affine,
    "crop": crop,
    "crop_resize": crop_resize,
    "resample": resample,
    "resize": resize,
    "resize_bilinear": resize_bilinear,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
