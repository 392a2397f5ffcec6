"""Random changes of a batch that keep its answers, or mix them in a known proportion."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from edgeopt.core.training import TrainingSettings


class Batch(NamedTuple):
    """What a training step sees.

    Attributes:
        inputs: of the network, samples first.
        labels: class of each sample.
        others: class of the sample that was mixed in; equal to `labels` where nothing was mixed.
        share: of `labels` in the mix.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    others: torch.Tensor
    share: float

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        inputs = tuple(x.to(device) for x in self.inputs)
        return Batch(inputs, self.labels.to(device), self.others.to(device), self.share)


def augmented(
    inputs: tuple[torch.Tensor, ...], labels: torch.Tensor, settings: TrainingSettings, layout: str, seed: int
) -> Batch:
    """Flip, shift, cover and mix a batch as the settings say.

    Covering: T. DeVries, G. W. Taylor: "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    Mixing: H. Zhang et al.: "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Args:
        inputs: floats can be mixed; images are inputs of four dimensions.
        labels: of shape (samples).
        settings: what to do.
        layout: of images.
        seed: of this batch.
    """
    draw = np.random.default_rng(seed)
    changed = list(inputs)
    for i, value in enumerate(changed):
        if value.ndim == 4 and value.is_floating_point():
            axes = (1, 2) if layout == "NHWC" else (2, 3)
            if settings.flip:
                mirrored = torch.from_numpy(draw.random(len(value)) < 0.5)
                value = torch.where(mirrored[:, None, None, None], value.flip(axes[1]), value)
            if settings.shift:
                value = _shifted(value, settings.shift, axes, draw)
            if settings.cutout:
                value = _covered(value, settings.cutout, axes, draw)
            changed[i] = value
    others, share = labels, 1.0
    if settings.mixup > 0 and all(x.is_floating_point() for x in changed):
        share = float(draw.beta(settings.mixup, settings.mixup))
        order = torch.from_numpy(draw.permutation(len(labels)))
        changed = [share * x + (1 - share) * x[order] for x in changed]
        others = labels[order]
    return Batch(tuple(changed), labels, others, share)


def _shifted(images: torch.Tensor, most: int, axes: tuple[int, int], draw: np.random.Generator) -> torch.Tensor:
    """Move each image by up to `most` pixels; the edge is repeated into the gap."""
    moved = torch.empty_like(images)
    offsets = draw.integers(-most, most + 1, (len(images), 2))
    for i, image in enumerate(images):
        for axis, offset in zip(axes, offsets[i], strict=True):
            size = image.shape[axis - 1]
            index = (torch.arange(size) + int(offset)).clamp(0, size - 1)
            image = image.index_select(axis - 1, index)
        moved[i] = image
    return moved


def _covered(images: torch.Tensor, side: int, axes: tuple[int, int], draw: np.random.Generator) -> torch.Tensor:
    """Set a square in each image to its mean colour; the square's centre lies anywhere in the image."""
    hidden = torch.ones(len(images), 1, 1, 1, dtype=torch.bool)
    for axis in axes:
        size = images.shape[axis]
        start = torch.from_numpy(draw.integers(0, size, len(images)) - side // 2)[:, None]
        place = torch.arange(size)[None]
        within = (place >= start) & (place < start + side)
        shape = [len(images), 1, 1, 1]
        shape[axis] = size
        hidden = hidden & within.view(shape)
    return torch.where(hidden, images.mean(axes, keepdim=True), images)
