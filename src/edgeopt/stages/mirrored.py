"""Calibration images, and the same mirrored: twice as many samples where more of them make the better fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeopt.core.model import TensorSpec
from edgeopt.stages.walk import Batches

CHANNELS, WIDTH = {"NCHW": 1, "NHWC": 3}, {"NCHW": 3, "NHWC": 2}
COLOURS = 3
IMAGES = ("image-classification", "object-detection", "instance-segmentation", "pose-estimation")


def with_mirrored(batches: Batches, inputs: tuple[TensorSpec, ...], task: str) -> Batches:
    """Return batches that yield all samples and then all of them mirrored, left for right.

    They stay as they are where the task is not one of images or no input is an image of three colours: one channel may
    be a spectrogram, which runs one way.

    Args:
        batches: opens the samples.
        inputs: of the program.
        task: of the model.
    """
    images = [s for s in inputs if s.layout in WIDTH and len(s.shape) == 4]
    axes = {s.name: WIDTH[s.layout] for s in images if s.shape[CHANNELS[s.layout]] == COLOURS}
    if task not in IMAGES or not axes:
        return batches

    def opened() -> Iterator[dict[str, np.ndarray]]:
        yield from batches()
        for batch in batches():
            yield {
                name: np.ascontiguousarray(np.flip(value, axes[name])) if name in axes else value
                for name, value in batch.items()
            }

    return opened
