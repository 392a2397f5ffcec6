"""The model card: everything needed to load, feed and judge a model, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeopt.core.detection import DetectionOptions
from edgeopt.core.settings import Settings, read_yaml

Task = Literal[
    "generic",
    "image-classification",
    "text-classification",
    "token-classification",
    "sentence-embedding",
    "question-answering",
    "object-detection",
    "instance-segmentation",
    "pose-estimation",
]
Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
Positive = Annotated[int, Field(gt=0)]


class InputSpec(Settings):
    """One model input: its shape has the batch first."""

    name: str = "input"
    shape: tuple[Positive, ...]
    dtype: Literal["float32", "float16", "int32", "int64", "uint8", "bool"] = "float32"
    layout: Literal["", "NCHW", "NHWC"] = ""


class Preprocess(Settings):
    """How a decoded image, an array or a text becomes the model's input.

    In order: resize (short side to `resize`, or exactly to `[height, width]`) and centre `crop`, or `letterbox` (as
    large as fits, the rest grey), colour order,
    `(pixel * scale - mean) / std` per channel, `layout`. Pixels are 0 to 255 before `scale`.
    Texts are encoded by `tokenizer` (a `tokenizer.json`) and padded to `max_length`.
    """

    resize: Positive | tuple[Positive, Positive] | None = None
    crop: Positive | tuple[Positive, Positive] | None = None
    letterbox: Positive | tuple[Positive, Positive] | None = None
    interpolation: Interpolation = "bilinear"
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    tokenizer: str | None = None
    max_length: Positive = 128

    @model_validator(mode="after")
    def _channels(self) -> Preprocess:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, 3):
                raise ValueError(f"{name} has {len(getattr(self, name))} values; give 1 or 3")
        if self.letterbox is not None and (self.resize is not None or self.crop is not None):
            raise ValueError("letterbox stands in place of resize and crop; give one or the other")
        return self


class CardData(Settings):
    """Data for calibration and for evaluation: a path relative to the card, or a built-in name.

    Attributes:
        slices: columns of the evaluation table that a recipe's run tells accuracy for, value by value.
    """

    calibration: str | None = None
    eval: str | None = None
    slices: tuple[str, ...] = ()


class ModelCard(Settings):
    """A model card. Paths in it are relative to its folder."""

    source: str
    arch: str | None = None
    task: Task = "generic"
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    preprocess: Preprocess = Preprocess()
    labels: str | tuple[str, ...] | None = None
    data: CardData = CardData()
    detection: DetectionOptions = DetectionOptions()
    license: str | None = None
    description: str | None = None


def read_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        UsageError: missing, malformed, or with an unknown key.
    """
    return read_yaml(ModelCard, path)
