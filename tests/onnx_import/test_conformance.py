"""ONNX's own operator tests: what is imported computes what the standard says, all else is refused in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgeopt.core.errors import EdgeoptError
from edgeopt.onnx_import import import_onnx
from edgeopt.onnx_import.coverage import BUILDERS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the cases divide by zero on purpose

KNOWN_DIFFERENCES = (
    "_bf16_", "_fp16_",  # rounding of half precision
    "test_nonmaxsuppression_suppress_by_IOU_and_scores", "test_nonmaxsuppression_identical_boxes",  # rows of -1 follow
    "test_top_k_same_values",  # PyTorch leaves the order of equal values open
    "test_resize_downsample_scales_linear_align_corners",  # the standard's test uses an output of 2.4 elements;
    "test_resize_downsample_scales_cubic_align_corners",  # onnxruntime and PyTorch use the 2 that there are
)  # fmt: skip


def _variants(case):
    """Yield the model as it is, with all but the first input stored, and with all inputs stored."""
    inputs = case.data_sets[0][0]
    for fed in (len(inputs), 1, 0):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for value, array in list(zip(case.model.graph.input, inputs, strict=False))[fed:]:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        del model.graph.input[fed:]
        yield model, inputs[:fed]


def _agrees(case, path: Path) -> str:
    """Return `same`, `different`, or the one line of the refusal."""
    refusal = ""
    for model, fed in _variants(case):
        path.write_bytes(model.SerializeToString())
        try:
            imported = import_onnx(path)
        except EdgeoptError as error:
            refusal = refusal or str(error)
            continue
        got = imported.module(*(torch.from_numpy(np.array(a)) for a in fed))
        for result, expected in zip(got if isinstance(got, tuple) else (got,), case.data_sets[0][1], strict=True):
            numbers = result.detach().float() if result.dtype == torch.bfloat16 else result.detach()
            if tuple(numbers.shape) != expected.shape or not np.allclose(
                numbers.numpy().astype(expected.dtype), expected, rtol=max(case.rtol, 1e-3), atol=1e-4, equal_nan=True
            ):
                return "different"
        return "same"
    return refusal


def test_every_case_of_the_standard_that_is_imported_is_right(tmp_path):
    from onnx.backend.test.case.node import collect_testcases

    counts: Counter[str] = Counter()
    wrong, unclear = [], []
    for case in collect_testcases(None):
        if case.model is None or any(n.op_type not in BUILDERS or n.domain for n in case.model.graph.node):
            continue
        inputs, outputs = case.data_sets[0]
        if not all(isinstance(a, np.ndarray) for a in (*inputs, *outputs)):
            continue
        answer = _agrees(case, tmp_path / "case.onnx")
        counts[answer if answer in ("same", "different") else "refused"] += 1
        if answer == "different" and not any(k in case.name for k in KNOWN_DIFFERENCES):
            wrong.append(case.name)
        if len(answer.splitlines()) != 1:
            unclear.append(case.name)
    assert not wrong
    assert not unclear
    assert counts["same"] >= 950
