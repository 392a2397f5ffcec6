"""Non-maximum suppression inside an ONNX graph, by ONNX's own operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.core.detection import COLUMNS, DETECTIONS, DetectionOptions

PREFIX = "//suppression/"


def suppress(model: onnx.ModelProto, outputs: Sequence[str], options: DetectionOptions) -> list[str]:
    """Put suppression behind a detector, in place; returns what its outputs are called from now on.

    Before: `boxes [1, 4, anchors]`, `scores [1, classes, anchors]`, `masks [1, n, anchors]`, `prototypes`. After:
    `detections [1, max_detections, 6]` (left, top, right, bottom, score, class; the surest first), `masks [1, n,
    max_detections]` of the same objects, `prototypes`. Rows behind the last object are zero.

    An anchor has the class of its highest score. The operator keeps scores *above* its threshold, which is therefore
    the next number below `confidence`. It works class by class, so what other classes say of an anchor is put out of
    reach.

    Requires a batch of one, shapes that are fixed, and float32 outputs; the graph's own names of outputs stay unused.
    """
    graph = model.graph
    values = dict(zip(outputs, list(graph.output), strict=True))
    shapes = {name: _shape(value) for name, value in values.items()}
    classes, anchors = shapes["scores"][1:]
    most = options.max_detections
    add = _Nodes(graph)
    boxes, scores = values["boxes"].name, values["scores"].name
    kinds = add("ArgMax", scores, axis=1, keepdims=0)
    best = add("ReduceMax", scores, add.constant([1]), keepdims=1)
    ranked = best
    if classes > 1 and not options.class_agnostic:
        own = add("Equal", add("Unsqueeze", kinds, add.constant([1])), add.constant(np.arange(classes)[None, :, None]))
        ranked = add("Where", own, scores, add.constant(np.float32(-1)))
    corners = add("Transpose", boxes, perm=[0, 2, 1])
    threshold = np.nextafter(np.float32(options.confidence), np.float32(-1))
    selected = add(
        "NonMaxSuppression",
        corners,
        ranked,
        add.constant([most]),
        add.constant(np.array([options.iou], np.float32)),
        add.constant(np.array([threshold], np.float32)),
    )
    found = add("Gather", selected, add.constant(np.int64(2)), axis=1)
    sure = add("Gather", add("Reshape", best, add.constant([-1])), found)
    # As many empty rows as there may be objects go behind these, so that the surest `most` always exist.
    found = add("Concat", found, add.constant(np.zeros(most, np.int64)), axis=0)
    sure = add("Concat", sure, add.constant(np.full(most, -1, np.float32)), axis=0)
    sure, order = add.two("TopK", sure, add.constant([most]), axis=0)
    rows = add("Gather", found, order)
    real = add("GreaterOrEqual", sure, add.constant(np.float32(0)))
    nothing = add.constant(np.float32(0))
    kept = add("Gather", add("Reshape", kinds, add.constant([-1])), rows)
    column = add.constant([1, -1, 1])
    table = add(
        "Concat",
        add("Gather", corners, rows, axis=1),
        add("Reshape", sure, column),
        add("Cast", add("Reshape", kept, column), to=onnx.TensorProto.FLOAT),
        axis=2,
    )
    made: dict[str, tuple[str, tuple[int, ...]]] = {}
    made[DETECTIONS] = (add("Where", add("Reshape", real, column), table, nothing), (1, most, COLUMNS))
    for name, value in values.items():
        if name in ("boxes", "scores"):
            continue
        shape = shapes[name]
        made[name] = (value.name, shape)
        if len(shape) == 3 and shape[2] == anchors:
            gathered = add("Gather", value.name, rows, axis=2)
            made[name] = (
                add("Where", add("Reshape", real, add.constant([1, 1, -1])), gathered, nothing),
                (*shape[:2], most),
            )
    del graph.output[:]
    for result, shape in made.values():
        graph.output.append(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, shape))
    return list(made)


class _Nodes:
    """Appends nodes and constants to a graph, each under a name that nothing else has."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def constant(self, value: np.ndarray | np.generic | list[int]) -> str:
        """Add a constant; lists are int64."""
        name = self._name("constant")
        array = np.asarray(value, np.int64) if isinstance(value, list) else np.asarray(value)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; returns the output's name."""
        name = self._name(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def two(self, kind: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        """Add a node of two outputs; returns their names."""
        first, second = self._name(kind), self._name(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [first, second], name=first, **attributes))
        return first, second

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{PREFIX}{kind}_{self._count}"


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
