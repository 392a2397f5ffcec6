"""Executes ONNX files by ONNX Runtime."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec, layout_of
from edgeopt.runtimes.session import Arrays

NAME = "onnxruntime"
TOOLS = ("onnxruntime",)
DTYPES = {"float": "float32", "float16": "float16", "double": "float64", "bool": "bool"}


def load(path: Path, options: Mapping[str, Any]) -> OrtSession:
    """Load a file; `options`: `threads`.

    Raises:
        ArtifactError: the file is damaged or has an operator that the runtime lacks.
    """
    return OrtSession(path, int(options.get("threads", os.environ.get("OMP_NUM_THREADS", 1))))


class OrtSession:
    """An ONNX Runtime session on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        self._name = path.name
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ArtifactError(f"{path.name}: onnxruntime cannot load it: {_reason(error)}") from error
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        try:
            results = self._session.run(None, inputs)
        except Exception as error:
            raise ArtifactError(f"onnxruntime cannot run {self._name}: {_reason(error)}") from error
        return {spec.name: np.asarray(result) for spec, result in zip(self.outputs, results, strict=True)}


def _spec(value: Any) -> TensorSpec:
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", value.type)
    shape = tuple(d if isinstance(d, int) else -1 for d in value.shape)
    return TensorSpec(value.name, shape, DTYPES.get(kind, kind), layout_of(shape))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
