"""What detectors find and what data says is there, with the options of the step between."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgeopt.core.settings import Settings

if TYPE_CHECKING:
    import numpy as np

METRICS = "metrics.json"
"""File beside stored outputs."""
TASKS = ("object-detection", "instance-segmentation", "pose-estimation")
DETECTIONS = "detections"
"""Output of a network or artifact that needs no suppression."""
COLUMNS = 6
"""Left, top, right, bottom, score, class."""
Share = Annotated[float, Field(ge=0, le=1)]


class DetectionOptions(Settings):
    """How raw boxes and scores become detections.

    Boxes below `confidence` are dropped; of two boxes of one class that overlap by more than `iou` (intersection over
    union) the one of lower score is (non-maximum suppression; between classes too if `class_agnostic`); at most
    `max_detections` are kept.
    """

    confidence: Share = 0.25
    iou: Share = 0.7
    max_detections: Annotated[int, Field(gt=0, le=10000)] = 300
    class_agnostic: bool = False


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image.

    Attributes:
        boxes: `[n, 4]` float32: left, top, right, bottom in pixels.
        scores: `[n]` float32, descending.
        classes: `[n]` int64.
        anchors: `[n]` int64: where in the raw outputs they stand, for masks and keypoints.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    anchors: np.ndarray


@dataclass(frozen=True)
class Window:
    """Where an image lies in the model's input: `input = image * scale + offset`, for x and for y."""

    scale: tuple[float, float]
    offset: tuple[float, float]


@dataclass(frozen=True)
class Truth:
    """The objects that data says are in one image.

    Attributes:
        size: height and width of the image in pixels.
        boxes: left, top, right, bottom in pixels of the image.
        classes: index of each.
        crowd: whether a box stands for a group that is not counted one by one (COCO's `iscrowd`).
        window: where the image lies in the model's input.
    """

    size: tuple[int, int]
    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[int, ...]
    crowd: tuple[bool, ...] = field(default=())
    window: Window = Window((1.0, 1.0), (0.0, 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "size": list(self.size),
            "boxes": [list(b) for b in self.boxes],
            "classes": list(self.classes),
            "crowd": list(self.crowd or (False,) * len(self.boxes)),
            "scale": list(self.window.scale),
            "offset": list(self.window.offset),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Truth:
        """Inverse of `to_json`."""
        return cls(
            tuple(record["size"]),
            tuple(tuple(b) for b in record["boxes"]),
            tuple(record["classes"]),
            tuple(record["crowd"]),
            Window(tuple(record["scale"]), tuple(record["offset"])),
        )
