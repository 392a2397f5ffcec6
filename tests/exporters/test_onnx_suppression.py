"""Suppression inside an ONNX graph finds what the code behind an artifact finds."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - behind the check that it is installed

from edgeopt.bench.detections import find  # noqa: E402
from edgeopt.core.detection import DetectionOptions  # noqa: E402
from edgeopt.core.errors import UsageError  # noqa: E402
from edgeopt.core.model import TensorSpec  # noqa: E402
from edgeopt.exporters.onnx_suppression import suppress  # noqa: E402
from edgeopt.tasks.suppress import require_suppressible, suppressed  # noqa: E402

ANCHORS = 300


def _suppressing(classes: int, options: DetectionOptions):
    """Return the outputs' names and a session of a graph that hands its inputs to the suppression."""
    shapes = {"boxes": (1, 4, ANCHORS), "scores": (1, classes, ANCHORS), "masks": (1, 5, ANCHORS)}
    shapes["prototypes"] = (1, 5, 6, ANCHORS)
    inputs = [helper.make_tensor_value_info(f"raw_{n}", TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info(f"//{n}", TensorProto.FLOAT, s) for n, s in shapes.items()]
    nodes = [helper.make_node("Identity", [i.name], [o.name]) for i, o in zip(inputs, outputs, strict=True)]
    model = helper.make_model(
        helper.make_graph(nodes, "detector", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    names = suppress(model, list(shapes), options)
    onnx.checker.check_model(model, full_check=True)
    declared = [tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in model.graph.output]
    specs = suppressed(tuple(TensorSpec(n, s) for n, s in shapes.items()), options)
    assert [(s.name, s.shape) for s in specs] == list(zip(names, declared, strict=True))
    return names, ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _crowd(seed: int, classes: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    corner = chance.integers(0, 60, (2, ANCHORS))
    boxes = np.concatenate([corner, corner + chance.integers(1, 40, (2, ANCHORS))]).astype(np.float32)
    scores = (chance.permutation(classes * ANCHORS) / (classes * ANCHORS)).reshape(classes, ANCHORS).astype(np.float32)
    others = {"masks": chance.standard_normal((5, ANCHORS)), "prototypes": chance.standard_normal((5, 6, ANCHORS))}
    return {"boxes": boxes, "scores": scores} | {n: a.astype(np.float32) for n, a in others.items()}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    "changed", [{}, {"iou": 0.2}, {"class_agnostic": True}, {"max_detections": 7}, {"max_detections": 500}]
)
def test_the_same_objects_in_the_same_order(classes, changed):
    options = DetectionOptions(**{"confidence": 0.5, "iou": 0.45} | changed)
    names, session = _suppressing(classes, options)
    for seed in range(3):
        raw = _crowd(seed, classes)
        found = find(raw, options)
        kept = len(found.scores)
        assert 1 < kept < ANCHORS
        given = dict(zip(names, session.run(None, {f"raw_{n}": a[None] for n, a in raw.items()}), strict=True))
        rows = given["detections"][0]
        assert rows.shape == (options.max_detections, 6) and not rows[kept:].any()
        expected = np.concatenate([found.boxes, found.scores[:, None], found.classes[:, None]], 1)
        assert np.array_equal(rows[:kept], expected)
        assert np.array_equal(given["masks"][0, :, :kept], raw["masks"][:, found.anchors])
        assert not given["masks"][0, :, kept:].any()
        assert np.array_equal(given["prototypes"][0], raw["prototypes"])


def test_a_score_as_high_as_the_threshold_stays_and_nothing_found_is_zeros():
    names, session = _suppressing(3, DetectionOptions(confidence=0.7))
    raw = _crowd(0, 3)
    raw["scores"] = np.full_like(raw["scores"], np.nextafter(np.float32(0.7), np.float32(0)))
    feed = {f"raw_{n}": a[None] for n, a in raw.items()}
    assert not session.run(None, feed)[names.index("detections")].any()
    feed["raw_scores"][0, 2, 17] = np.float32(0.7)
    row = session.run(None, feed)[names.index("detections")][0]
    assert np.array_equal(row[0], [*raw["boxes"][:, 17], np.float32(0.7), 2]) and not row[1:].any()


@pytest.mark.parametrize(
    ("shapes", "confidence", "told"),
    [
        ({"logits": (1, 5)}, 0.5, "takes outputs boxes and scores, not logits"),
        ({"detections": (1, 300, 6)}, 0.5, "detections needs no suppression; leave out --nms"),
        ({"boxes": (2, 4, 9), "scores": (2, 3, 9)}, 0.5, r"not \[2, 4, 9\] and \[2, 3, 9\]"),
        ({"boxes": (1, 4, 9), "scores": (1, 3, 8)}, 0.5, "takes boxes"),
        ({"boxes": (1, 4, 9), "scores": (1, 3, 9)}, 0.0, "confidence must be above 0"),
    ],
)
def test_what_no_suppression_can_stand_behind(shapes, confidence, told):
    specs = tuple(TensorSpec(n, s) for n, s in shapes.items())
    with pytest.raises(UsageError, match=told):
        require_suppressible(specs, DetectionOptions(confidence=confidence), "net.pt")
