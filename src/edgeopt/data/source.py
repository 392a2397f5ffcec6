"""What every kind of data gives: samples ready to be fed to the model."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from edgeopt.core.card import ModelCard
from edgeopt.core.detection import Truth
from edgeopt.core.model import TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """One preprocessed sample.

    Attributes:
        inputs: model input name → array of that input's dtype and shape, without the batch dimension.
        label: class index; None where the data has none.
        id: names the sample for people: an image's path, a table's line, an array's index.
        slices: further columns of a table (`camera`, `language`, ...), for results per group.
        text: what was encoded, where the sample is a text.
        truth: the objects in an image, where the data tells them.
    """

    inputs: dict[str, Array]
    label: int | None
    id: str
    slices: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    truth: Truth | None = None


class DataSource(Protocol):
    """Samples by index. Opening one validates its labels; reading a sample validates its image, array or text."""

    @property
    def kind(self) -> str:
        """`image-folder`, `table`, `npz` or `builtin`."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names in the order of their indices, where they are known."""
        ...

    def __len__(self) -> int:
        """Return the number of samples, at least one."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: its image, array or text cannot be used; names the file and the row.
            IndexError: `index` is not below the length.
        """
        ...

    def fingerprint(self) -> str:
        """Return a sha256 (hex) that changes with the content, the preprocessing or the model's inputs."""
        ...


def sample_indices(total: int, wanted: int, seed: int = 0) -> list[int]:
    """Return `wanted` of `total` indices, ascending, drawn without replacement; all of them if there are fewer.

    Folders and many tables are sorted by class, so the first `wanted` samples would show one class only. The same
    arguments give the same indices on every machine.
    """
    return sorted(random.Random(seed).sample(range(total), min(wanted, total)))


def settings_digest(card: ModelCard, inputs: tuple[TensorSpec, ...], labels: tuple[str, ...] | None) -> str:
    """Return a digest of everything in the card that decides what a sample holds."""
    return digest(card.preprocess.model_dump_json(), *(repr(spec) for spec in inputs), repr(labels))


def digest(*parts: str | bytes) -> str:
    """Return the sha256 (hex) of `parts`, each preceded by its length so that no two lists collide."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()
