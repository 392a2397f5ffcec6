"""Reads the exported program that every exporter starts from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize/dequantize operators of quantized programs

from edgeopt.core.arrays import array_file
from edgeopt.core.model import TensorSpec


def load_program(path: str) -> torch.export.ExportedProgram:
    """Load a program that edgeopt itself saved."""
    return torch.export.load(path)


def example_inputs(inputs: tuple[TensorSpec, ...]) -> tuple[torch.Tensor, ...]:
    """Return contiguous inputs of the right shapes and dtypes.

    A program exported from channels-last examples crashes ExecuTorch at execution and is refused by coremltools.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(spec.shape, generator=generator)
        if spec.dtype == "float32"
        else torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )


def calibration_batches(folder: str, inputs: tuple[TensorSpec, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Yield one dictionary of arrays per calibration batch, read from disk as it is needed."""
    arrays = {spec.name: np.load(array_file(folder, spec.name), mmap_mode="r") for spec in inputs}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: np.array(array[index]) for name, array in arrays.items()}


class Unit(torch.nn.Module):
    """A module around a program's module.

    ExecuTorch refuses a root `nn.Sequential`, whose children's names begin with a digit; here they do not.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> object:
        """Call the wrapped module."""
        return self.module(*inputs)


class HalfPrecision(torch.nn.Module):
    """Computes in float16 between float32 inputs and outputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: torch.Tensor) -> object:
        """Cast floating inputs down and floating outputs up again."""
        result = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
        return torch.utils._pytree.tree_map(lambda y: y.float() if y.is_floating_point() else y, result)
