"""The runtime: the reference anywhere, and beside Core ML on a Mac."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.core.errors import ArtifactError, UsageError
from edgeopt.runtimes import run_coreml


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Core ML itself")
def test_reference_session(small_package: Path, small_input: np.ndarray) -> None:
    assert run_coreml.NAME == "MIL reference evaluation"
    session = run_coreml.load(small_package, {"threads": 1})
    assert [spec.name for spec in session.inputs] == ["x"]
    result = session({"x": small_input})
    assert list(result) == [spec.name for spec in session.outputs]
    assert next(iter(result.values())).shape == (1, 48)
    half = run_coreml.load(small_package, {"precision": "fp16"})({"x": small_input})
    assert not np.array_equal(next(iter(half.values())), next(iter(result.values())))


def test_unknown_precision_and_damaged_package(small_package: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bf16"):
        run_coreml.load(small_package, {"precision": "bf16"})
    with pytest.raises(ArtifactError):
        run_coreml.load(tmp_path, {})


def test_core_ml_results_are_compared_with_the_reference(
    small_package: Path, small_input: np.ndarray, monkeypatch: Any
) -> None:
    class Model:
        """Stands in for coremltools' model, which only loads on a Mac."""

        def __init__(self, path: str) -> None:
            self.reference = run_coreml.ReferenceSession(run_coreml.Evaluator(run_coreml.load_package(Path(path))))

        def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {name: value * np.float32(1.001) for name, value in self.reference(dict(inputs)).items()}

    monkeypatch.setattr(run_coreml, "MLModel", Model)
    monkeypatch.setattr(run_coreml.sys, "platform", "darwin")
    session = run_coreml.load(small_package, {})
    assert isinstance(session, run_coreml.CoreMLSession)
    session({"x": small_input})
    session({"x": small_input * 2})
    (agreement,) = session.agreement_db.values()
    assert agreement == pytest.approx(60.0, abs=0.1)
