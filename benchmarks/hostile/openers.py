"""What opens a hostile file, inside a worker: the same functions that the command line calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import plugins
from edgeopt.core.budget import read_budget
from edgeopt.core.card import ModelCard, Preprocess
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.formats import FORMATS, format_of_file
from edgeopt.core.model import TensorSpec
from edgeopt.core.recipe import read_recipe
from edgeopt.core.target import load_target
from edgeopt.tasks.inspect import inspect_artifact

IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
MOST_SAMPLES = 50


def data(*, path: str, task: str = "image-classification") -> int:
    """Open a file of data and read its samples; returns how many."""
    from edgeopt.data import open_data

    preprocess = Preprocess(letterbox=(8, 8)) if task == "object-detection" else Preprocess(resize=(8, 8))
    card = ModelCard(source="x", task=task, preprocess=preprocess)
    source = open_data(path, card, (IMAGE,), Path(path).parent)
    for index in range(min(len(source), MOST_SAMPLES)):
        source[index]
    return len(source)


def image(*, path: str) -> list[int]:
    """Decode an image; returns its shape."""
    from edgeopt.data.image_file import decode_image, read_file

    return list(decode_image(read_file(Path(path), "image"), path).shape)


def document(*, path: str) -> str:
    """Read a document that a user writes, told by its name; also what it names is found.

    The command line reads these in its own process, so any other exception than edgeopt's own would be a traceback.
    """
    from edgeopt.sources.request import understand

    file = Path(path)
    readers: dict[str, Any] = {"budget": read_budget, "recipe": read_recipe, "target": lambda p: load_target(str(p))}
    kind = file.stem.partition("-")[0]
    try:
        return type(readers[kind](file) if kind in readers else understand(path)).__name__
    except EdgeoptError:
        raise
    except Exception as error:  # noqa: BLE001 - any of them would be a traceback
        raise AssertionError(f"traceback of {type(error).__name__}: {error}") from None


def artifact(*, path: str) -> int:
    """Read an artifact's structure, then load it and run it on zeros."""
    form = format_of_file(Path(path))
    assert form is not None and form.name in FORMATS
    inspect_artifact(artifact=path, format_name=form.name)
    session = plugins.find("runtimes", form.runtime).load(Path(path), {"threads": 1})
    return len(session({s.name: np.zeros(s.shape, s.dtype) for s in session.inputs}))
