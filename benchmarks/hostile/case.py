"""One hostile file, and where the files of a run are put."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A file or folder that is opened as a user would.

    Attributes:
        kind: what is wrong with it, as the result's rows are called.
        name: unique, the same in every run of one seed.
        opener: which of `openers.py` opens it.
        path: what is opened.
        harmless: whether it may also be read as if nothing were wrong: no format but archives has checksums, so a bit
            flipped in a weight is another weight.
    """

    kind: str
    name: str
    opener: str
    path: Path
    harmless: bool = False


@dataclass
class Place:
    """Where a run puts its files.

    Attributes:
        root: every case gets a folder of its own in it.
        canary: folder that payloads would write to; anything in it was written by code out of a file.
        seeds: sound files by name, that cases are made of.
        chance: seeded.
    """

    root: Path
    canary: Path
    seeds: dict[str, Path]
    chance: random.Random
    count: int = field(default=0)

    def new(self, name: str) -> Path:
        """Return a path of that name in an empty folder."""
        self.count += 1
        folder = self.root / f"{self.count:04d}"
        folder.mkdir(parents=True)
        return folder / name

    def mark(self) -> Path:
        """Return the path that the payload of the next case would write."""
        return self.canary / f"{self.count + 1:04d}"


OPENERS = {
    ".pt": "source",
    ".pth": "source",
    ".safetensors": "source",
    ".pt2": "source",
    ".onnx": "source",
    ".keras": "keras",
    ".h5": "keras",
    ".npz": "data",
    ".csv": "data",
    ".jsonl": "data",
    ".json": "boxes",
    ".zip": "data",
    ".png": "image",
    ".jpg": "image",
    ".tiff": "image",
    ".webp": "image",
    ".bmp": "image",
    ".tflite": "artifact",
    ".pte": "artifact",
    ".mlpackage": "artifact",
}
"""How a file is opened, by what its name says."""
