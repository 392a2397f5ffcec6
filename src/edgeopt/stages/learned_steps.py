"""Weights rounded with learned step sizes (LSQ: Esser et al., ICLR 2020), always with the grid's end in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

from edgeopt.stages.layers import Layer
from edgeopt.stages.round_weights import Grid, recoverable_scale
from edgeopt.stages.weight_grid import blocks_of, weight_of_blocks

Views = dict[tuple[Node, Node], Callable[[], torch.Tensor]]
SHARES = 24
SMALLEST_SHARE = 0.3


@dataclass
class _Weight:
    layer: Layer
    grid: Grid
    log_step: torch.nn.Parameter


class LearnedSteps:
    """The quantized weights of a network in training.

    A step size never exceeds a block's largest magnitude over the grid's end: the largest weight then always takes the
    last integer, and whoever reads the weights later finds the same step size and the same integers. Logarithms are
    learned, so that a rate means the same for every weight and a step stays positive.

    Args:
        layers: with their grids; of layers that share a weight the grid with the fewest bits counts.
    """

    def __init__(self, layers: list[tuple[Layer, Grid]]) -> None:
        self._weights: dict[int, _Weight] = {}
        self._ids = {layer.node: id(layer.parameter) for layer, _ in layers}
        for layer, grid in layers:
            known = self._weights.get(id(layer.parameter))
            if known is None or grid.bits < known.grid.bits:
                steps = _first_steps(blocks_of(layer, layer.weight.detach(), grid), grid)
                self._weights[id(layer.parameter)] = _Weight(layer, grid, torch.nn.Parameter(steps.log()))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Logarithms of the step sizes, one tensor per weight."""
        return [w.log_step for w in self._weights.values()]

    def views(self, wanted: Views) -> Views:
        """Return the rounded weights in place of those of a configuration; each is computed once."""
        made: dict[int, torch.Tensor] = {}

        def view(key: int) -> Callable[[], torch.Tensor]:
            def rounded() -> torch.Tensor:
                if key not in made:
                    made[key] = _rounded(self._weights[key])
                return made[key]

            return rounded

        return {(value, layer): view(self._ids[layer]) for value, layer in wanted}

    def settle(self) -> None:
        """Replace every weight by its rounded values."""
        with torch.no_grad():
            for weight in self._weights.values():
                layer, grid = weight.layer, weight.grid
                blocks = blocks_of(layer, layer.weight, grid)
                scale = recoverable_scale(_steps(weight, blocks) * grid.largest, grid.largest)
                integers = torch.round(blocks / scale).clamp(-grid.largest, grid.largest)
                layer.set_weight(weight_of_blocks(layer, integers * scale, grid))


def _rounded(weight: _Weight) -> torch.Tensor:
    """Return a weight on its grid; gradients reach the weight, where it is not clipped, and its step size."""
    layer, grid = weight.layer, weight.grid
    blocks = blocks_of(layer, layer.parameter, grid)
    scale = _steps(weight, blocks)
    ratio = (blocks / scale).clamp(-grid.largest, grid.largest)
    return weight_of_blocks(layer, (ratio + (ratio.round() - ratio).detach()) * scale, grid)


def _steps(weight: _Weight, blocks: torch.Tensor) -> torch.Tensor:
    most = blocks.detach().abs().amax(-1, keepdim=True) / weight.grid.largest
    return torch.where(most > 0, torch.minimum(weight.log_step.exp(), most), torch.ones_like(most))


def _first_steps(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the steps of least squared error: with few bits it pays to clip the largest weights."""
    most = blocks.abs().amax(-1, keepdim=True) / grid.largest
    best = torch.where(most > 0, most, torch.ones_like(most))
    if grid.bits >= 8:
        return best
    least = torch.full_like(best, torch.inf)
    for share in torch.linspace(SMALLEST_SHARE, 1, SHARES).tolist():
        steps = torch.where(most > 0, most * share, torch.ones_like(most))
        rounded = (blocks / steps).round().clamp(-grid.largest, grid.largest) * steps
        error = (rounded - blocks).square().sum(-1, keepdim=True)
        best = torch.where(error < least, steps, best)
        least = torch.minimum(error, least)
    return best
