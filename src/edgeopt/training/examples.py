"""Training and evaluation samples, preprocessed once and read from disk as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeopt.core.arrays import LABELS, array_file
from edgeopt.core.model import TensorSpec


@dataclass(frozen=True, eq=False)
class Examples:
    """Samples in a fixed order.

    Attributes:
        arrays: one per input, of shape (samples, *one sample's shape).
        labels: class of each sample; -1 where it has none.
    """

    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray

    @classmethod
    def read(cls, folder: Path, inputs: Sequence[TensorSpec]) -> Examples:
        """Open `<input>.npy` of shape (batches, *input shape) and `labels.npy`."""
        labels = np.load(folder / f"{LABELS}.npy")
        arrays = []
        for spec in inputs:
            stored = np.load(array_file(folder, spec.name), mmap_mode="r")
            arrays.append(stored.reshape(-1, *spec.shape[1:])[: len(labels)])
        return cls(tuple(arrays), labels)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a class."""
        return bool(len(self.labels)) and bool((self.labels >= 0).all())

    def batch(self, indices: np.ndarray) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return inputs (samples, ...) and classes (samples)."""
        inputs = tuple(torch.from_numpy(np.ascontiguousarray(a[indices])) for a in self.arrays)
        return inputs, torch.from_numpy(np.ascontiguousarray(self.labels[indices]))


def indices_of_step(step: int, samples: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the samples of one step, whatever came before it: each epoch is a permutation of its own."""
    size = min(batch_size, samples)
    epoch, place = divmod(step, max(1, samples // size))
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    return np.asarray(order[place * size : (place + 1) * size])
