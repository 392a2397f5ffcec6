"""A layer's weight as blocks that share one scale, whatever the layer's kind; differentiable."""

from __future__ import annotations

import torch

from edgeopt.stages.layers import Layer
from edgeopt.stages.round_weights import Grid, recoverable_scale
from edgeopt.stages.unfold import rows_of, weight_of_rows


def blocks_of(layer: Layer, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the weight with the values that share a scale along the last axis."""
    rows = weight.unsqueeze(0) if layer.kind == "embedding" else rows_of(layer, weight)
    return rows if grid.block is None else rows.reshape(*rows.shape[:-1], -1, grid.block)


def weight_of_blocks(layer: Layer, blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Inverse of `blocks_of`."""
    rows = blocks if grid.block is None else blocks.flatten(-2)
    return rows.squeeze(0) if layer.kind == "embedding" else weight_of_rows(layer, rows)


def scales_of(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return each block's scale, its largest magnitude at the grid's end; shape [..., 1]."""
    return recoverable_scale(blocks.abs().amax(-1, keepdim=True), grid.largest)


def on_grid(layer: Layer, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the weight rounded to the nearest integers of its grid."""
    blocks = blocks_of(layer, weight, grid)
    scale = scales_of(blocks, grid)
    return weight_of_blocks(layer, torch.round(blocks / scale).clamp(-grid.largest, grid.largest) * scale, grid)
