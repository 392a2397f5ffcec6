"""Executes `.pt2` exported programs by PyTorch itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of quantized programs

from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.runtimes.session import Arrays

NAME = "PyTorch"
TOOLS = ("torch",)


def load(path: Path, options: Mapping[str, Any]) -> TorchSession:
    """Load a program that edgeopt itself saved; `options`: `threads`."""
    torch.set_num_threads(int(options.get("threads", os.environ.get("OMP_NUM_THREADS", 1))))
    return TorchSession(torch.export.load(str(path)))


class TorchSession:
    """An exported program; its tensors are called by position."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.module()
        self.inputs = _specs(program, program.graph_signature.user_inputs, "input")
        self.outputs = _specs(program, program.graph_signature.user_outputs, "output")

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        with torch.inference_mode():
            result = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[s.name])) for s in self.inputs))
        flat, _ = torch.utils._pytree.tree_flatten(result)
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.outputs, flat, strict=True)}


def _specs(program: torch.export.ExportedProgram, names: Any, prefix: str) -> tuple[TensorSpec, ...]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    specs = []
    for index, name in enumerate(names):
        value = values[name]
        shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
        specs.append(TensorSpec(f"{prefix}_{index}", shape, str(value.dtype).removeprefix("torch."), layout_of(shape)))
    return tuple(specs)
