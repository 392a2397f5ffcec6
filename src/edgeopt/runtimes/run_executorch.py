"""Executes `.pte` programs by ExecuTorch's Python runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.runtime import Runtime, Verification

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.runtimes.session import Arrays

NAME = "ExecuTorch"
TOOLS = ("executorch",)
SCALAR_TYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}


def load(path: Path, options: Mapping[str, Any]) -> ExecuTorchSession:
    """Load a program, its buffers verified first; takes no options.

    Raises:
        ArtifactError: the file is damaged or has no method `forward`.
    """
    del options
    return ExecuTorchSession(path)


class ExecuTorchSession:
    """The method `forward` of a program; its tensors have no names, so they are called by position."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        content = path.read_bytes()
        if content[4:6] != b"ET":
            raise ArtifactError(f"{path.name}: not an ExecuTorch program (no ET identifier)")
        try:
            # The method reads the program's memory: the program must live as long.
            self._program = Runtime.get().load_program(content, verification=Verification.InternalConsistency)
            self._method = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"{path.name}: ExecuTorch cannot load it: {_reason(error)}") from error
        metadata = self._method.metadata
        self.inputs = tuple(_spec(f"input_{i}", metadata.input_tensor_meta(i)) for i in range(metadata.num_inputs()))
        self.outputs = tuple(
            _spec(f"output_{i}", metadata.output_tensor_meta(i)) for i in range(metadata.num_outputs())
        )

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[s.name])) for s in self.inputs]
        try:
            results = self._method.execute(tensors)
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"ExecuTorch cannot run {self._name}: {_reason(error)}") from error
        # The runtime reuses its output memory at the next call.
        return {s.name: np.array(r.numpy()) for s, r in zip(self.outputs, results, strict=True)}


def _spec(name: str, metadata: Any) -> TensorSpec:
    shape = tuple(int(d) for d in metadata.sizes())
    return TensorSpec(name, shape, SCALAR_TYPES.get(int(metadata.dtype()), "float32"), layout_of(shape))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
