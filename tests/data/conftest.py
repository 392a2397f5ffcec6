from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeopt.core.card import ModelCard
from edgeopt.core.model import TensorSpec


def _card(**options) -> ModelCard:
    return ModelCard.model_validate({"source": "model.py:build", "task": "image-classification", **options})


@pytest.fixture(scope="session")
def card() -> Callable[..., ModelCard]:
    """A model card with the options given."""
    return _card


@pytest.fixture(scope="session")
def rgb() -> tuple[TensorSpec, ...]:
    """The input of a model that takes 8 x 8 colour images."""
    return (TensorSpec("image", (1, 3, 8, 8)),)


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """16 x 12 RGB pixels without two equal rows or columns."""
    return np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """RGB or grey pixels to the content of an image file."""

    def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
        done, content = cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        assert done
        return content.tobytes()

    return encoded


@pytest.fixture
def pictures(tmp_path: Path, picture: np.ndarray, encode: Callable[..., bytes]) -> Path:
    """A folder with a.png, b.jpg and in/c.bmp, each 8 x 8."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg", "in/c.bmp"):
        (tmp_path / name).write_bytes(encode(picture[:8, :8], Path(name).suffix))
    return tmp_path
