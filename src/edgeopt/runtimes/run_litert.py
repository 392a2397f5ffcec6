"""Executes `.tflite` files by LiteRT's interpreter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.runtimes.session import Arrays

NAME = "LiteRT"
TOOLS = ("ai-edge-litert",)


def load(path: Path, options: Mapping[str, Any]) -> LiteRTSession:
    """Load a file from a buffer; `options`: `threads`.

    Raises:
        ArtifactError: the file is damaged or has an operator that the interpreter lacks.
    """
    return LiteRTSession(path, int(options.get("threads", os.environ.get("OMP_NUM_THREADS", 1))))


class LiteRTSession:
    """An interpreter on the CPU (XNNPACK delegate)."""

    def __init__(self, path: Path, threads: int) -> None:
        self._name = path.name
        content = path.read_bytes()
        if content[4:8] != b"TFL3":
            raise ArtifactError(f"{path.name}: not a TFLite flatbuffer (no TFL3 identifier)")
        try:
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path.name}: LiteRT cannot load it: {_reason(error)}") from error
        signatures = self._interpreter.get_signature_list()
        if signatures:
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {d["name"]: d for d in self._interpreter.get_input_details()}
            outputs = {d["name"]: d for d in self._interpreter.get_output_details()}
        self._input_index = {name: d["index"] for name, d in inputs.items()}
        self._output_index = {name: d["index"] for name, d in outputs.items()}
        self.inputs = tuple(_spec(name, d) for name, d in inputs.items())
        self.outputs = tuple(_spec(name, d) for name, d in outputs.items())

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        try:
            for name, array in inputs.items():
                self._interpreter.set_tensor(self._input_index[name], array)
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(index) for name, index in self._output_index.items()}
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"LiteRT cannot run {self._name}: {_reason(error)}") from error


def _spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    shape = tuple(int(d) for d in detail["shape"])
    scale, zero_point = detail["quantization"]
    quantized = bool(scale) and np.dtype(detail["dtype"]).kind in "iu"
    return TensorSpec(
        name,
        shape,
        np.dtype(detail["dtype"]).name,
        layout_of(shape),
        float(scale) if quantized else None,
        int(zero_point) if quantized else None,
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
