"""Executes Core ML packages: by Core ML on a Mac, by the MIL reference evaluation anywhere.

The reference says what the program computes. Its time says nothing about a device and is never a latency.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools.models import MLModel

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.mil import Evaluator, load_package, snr_db
from edgeopt.runtimes.session import Arrays

REFERENCE = "MIL reference evaluation"
NAME = "Core ML" if sys.platform == "darwin" else REFERENCE
TOOLS = ("coremltools", "torch")

Predict = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def load(path: Path, options: Mapping[str, Any]) -> ReferenceSession | CoreMLSession:
    """Load a package; `options`: `precision` (`fp32`, `fp16` or `int8`), `function`, `threads`.

    Raises:
        ArtifactError: the package is damaged or cannot be executed.
        UnsupportedOpError: it holds an operator that cannot be evaluated.
        UsageError: there is no such precision.
    """
    torch.set_num_threads(int(options.get("threads", os.environ.get("OMP_NUM_THREADS", 1))))
    program = load_package(path, options.get("function"))
    reference = ReferenceSession(Evaluator(program, options.get("precision", "fp32")))
    if sys.platform != "darwin":
        return reference
    try:
        model = MLModel(str(path))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"Core ML cannot load {path.name}: {error}") from error
    return CoreMLSession(reference, model.predict)


class ReferenceSession:
    """The evaluator as a session. A classifier's label, which is no number, is left out; its probabilities stay."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.inputs: tuple[TensorSpec, ...] = evaluator.inputs
        self.outputs: tuple[TensorSpec, ...] = tuple(s for s in evaluator.outputs if s.dtype != "str")

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        results = self.evaluator(inputs)
        return {spec.name: results[spec.name] for spec in self.outputs}


class CoreMLSession:
    """Core ML's own results, each compared with the reference.

    Attributes:
        agreement_db: for every output the lowest SNR of Core ML against the reference so far.
    """

    def __init__(self, reference: ReferenceSession, predict: Predict) -> None:
        self.reference = reference
        self.inputs = reference.inputs
        self.outputs = reference.outputs
        self.agreement_db: dict[str, float] = {}
        self._predict = predict

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once; see `Session`."""
        try:
            results = self._predict(inputs)
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"Core ML cannot run {self.reference.evaluator.program.name}: {error}") from error
        expected = self.reference(inputs)
        outputs: Arrays = {}
        for spec in self.outputs:
            value = results[spec.name]
            if isinstance(value, Mapping):
                labels = self.reference.evaluator.program.labels
                value = np.asarray([[value[label] for label in labels]], dtype=np.float32)
            outputs[spec.name] = np.asarray(value)
            agreement = snr_db(expected[spec.name], outputs[spec.name])
            self.agreement_db[spec.name] = min(agreement, self.agreement_db.get(spec.name, float("inf")))
        return outputs
