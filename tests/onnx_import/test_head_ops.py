"""What detection heads and warps are made of: suppression, sampling, resizing of integers."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeopt.core.errors import UnsupportedOpError
from edgeopt.onnx_import import import_onnx

INT64 = TensorProto.INT64


def _suppression(make_model, boxes, scores, kept, iou, threshold, **attributes):
    constants = {"kept": np.array([kept]), "iou": np.array([iou], np.float32)}
    names = ["boxes", "scores", "kept", "iou"]
    if threshold is not None:
        constants["threshold"] = np.array([threshold], np.float32)
        names.append("threshold")
    node = helper.make_node("NonMaxSuppression", names, ["y"], name="nms", **attributes)
    model = make_model([node], {"boxes": boxes, "scores": scores}, constants, {"y": INT64})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for size in ("rows", 3):
        axis = model.graph.output[0].type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            axis.dim_value = size
    return model


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000), batch=st.integers(1, 2), classes=st.integers(1, 3), count=st.integers(1, 12),
    kept=st.integers(1, 6), iou=st.sampled_from([0.1, 0.5, 0.9]), threshold=st.sampled_from([None, 0.3]),
    centred=st.booleans(),
)  # fmt: skip
def test_suppression_keeps_what_onnxruntime_keeps_then_pads(
    make_model, tmp_path, seed, batch, classes, count, kept, iou, threshold, centred
):
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 1, (batch, count, 4)).astype(np.float32)
    scores = random.permutation(batch * classes * count).reshape(batch, classes, count).astype(np.float32)
    scores /= scores.size
    model = _suppression(make_model, boxes, scores, kept, iou, threshold, center_point_box=int(centred))
    path = tmp_path / "nms.onnx"
    onnx.save(model, path)
    imported = import_onnx(path)
    rows = imported.module(torch.from_numpy(boxes), torch.from_numpy(scores)).numpy()
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"boxes": boxes, "scores": scores})[0]
    assert rows.shape == (batch * classes * min(kept, count), 3)
    np.testing.assert_array_equal(rows[: len(expected)], expected)
    assert (rows[len(expected) :] == -1).all()
    assert "unused ones are -1" in imported.notes[0]


def test_suppression_survives_torch_export(make_model, tmp_path, random):
    boxes, scores = np.abs(random(1, 8, 4)), np.abs(random(1, 2, 8))
    path = tmp_path / "nms.onnx"
    onnx.save(_suppression(make_model, boxes, scores, 3, 0.5, 0.1), path)
    module, arguments = import_onnx(path).module, (torch.from_numpy(boxes), torch.from_numpy(scores))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.export.export(module, arguments)
    assert torch.equal(program.module()(*arguments), module(*arguments))


def test_suppression_of_thousands_is_left_to_the_app(make_model, tmp_path):
    path = tmp_path / "nms.onnx"
    boxes, scores = np.zeros((1, 3000, 4), np.float32), np.zeros((1, 1, 3000), np.float32)
    onnx.save(_suppression(make_model, boxes, scores, 2000, 0.5, None), path)
    with pytest.raises(UnsupportedOpError, match="cut the model before it and suppress boxes in the app"):
        import_onnx(path)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(check_op, random, mode, padding, corners):
    if mode == "cubic" and padding == "reflection":
        pytest.skip("onnxruntime reflects once only where cubic kernels reach beyond")
    grid = np.clip(random(1, 5, 6, 2) * 0.6, -1.1, 1.1)
    check_op("GridSample", random(1, 3, 7, 8), grid, opset=20, mode=mode, padding_mode=padding, align_corners=corners,
             rtol=1e-3, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_crops_that_reach_outside_are_filled(check_op, random, mode):
    roi = np.array([0, 0, -0.25, 0.4, 1, 1, 0.7, 1.5], np.float32)
    empty, sizes = np.array([], np.float32), np.array([1, 2, 12, 14])
    check_op("Resize", random(1, 2, 6, 7), roi, empty, sizes, stored=(1, 2, 3), opset=13, mode=mode,
             coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0)  # fmt: skip
