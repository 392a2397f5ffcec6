"""What a package declares at its border, and arrays across it.

Images arrive as uint8 [N, H, W, 3] in RGB order ([N, H, W, 1] for grayscale) and are handed to the program in the
colour layout it declares, scale and bias being part of the program. An array [N, C, H, W] in that layout is taken as it
is, so a twin with plain arrays can be fed alike. A classifier gives its label and the probabilities in the order of its
labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from coremltools.proto import FeatureTypes_pb2
from numpy.typing import NDArray

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec

Array = NDArray[Any]

_ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
_COLOURS = FeatureTypes_pb2.ImageFeatureType.ColorSpace


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a package.

    Attributes:
        spec: name, shape, dtype as a caller passes or receives them.
        kind: `array`, `image`, `label`, `probabilities` or `state`.
        colour: of an image: `RGB`, `BGR`, `GRAYSCALE` or `GRAYSCALE_FLOAT16`.
        ranges: lowest and highest size of each dimension (-1: no bound); empty where the shape is fixed.
        shapes: the allowed shapes where they are enumerated.
    """

    spec: TensorSpec
    kind: str = "array"
    colour: str = ""
    ranges: tuple[tuple[int, int], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


def _image_feature(description: Any) -> Feature:
    image = description.type.imageType
    colour = str(_COLOURS.Name(image.colorSpace))
    channels = 1 if colour.startswith("GRAYSCALE") else 3
    dtype = "float16" if colour.endswith("FLOAT16") else "uint8"
    flexible = image.WhichOneof("SizeFlexibility")
    size = (-1, -1) if flexible == "imageSizeRange" else (image.height, image.width)
    shapes: tuple[tuple[int, ...], ...] = ()
    if flexible == "enumeratedSizes":
        shapes = tuple((1, s.height, s.width, channels) for s in image.enumeratedSizes.sizes)
        size = (-1, -1)
    spec = TensorSpec(description.name, (1, *size, channels), dtype, layout="NHWC")
    return Feature(spec, "image", colour, shapes=shapes)


def _array_feature(description: Any, declared: tuple[int, ...], state: bool = False) -> Feature:
    array = description.type.stateType.arrayType if state else description.type.multiArrayType
    dtype = _ARRAY_TYPES.get(array.dataType, "float32")
    shape = tuple(int(s) for s in array.shape) or declared
    flexible = array.WhichOneof("ShapeFlexibility")
    ranges: tuple[tuple[int, int], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    if flexible == "shapeRange":
        ranges = tuple((int(r.lowerBound), int(r.upperBound)) for r in array.shapeRange.sizeRanges)
        shape = tuple(low if low == high else -1 for low, high in ranges)
    elif flexible == "enumeratedShapes":
        shapes = tuple(tuple(int(s) for s in option.shape) for option in array.enumeratedShapes.shapes)
        shape = tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))
    return Feature(TensorSpec(description.name, shape, dtype), "state" if state else "array", "", ranges, shapes)


def read_feature(description: Any, declared: tuple[int, ...]) -> Feature:
    """Return what one feature description says; `declared` is the program's own shape, -1 where it varies."""
    kind = description.type.WhichOneof("Type")
    if kind == "imageType":
        return _image_feature(description)
    if kind == "stateType":
        return _array_feature(description, declared, state=True)
    if kind == "multiArrayType":
        return _array_feature(description, declared)
    if kind == "dictionaryType":
        return Feature(TensorSpec(description.name, declared, "float32"), "probabilities")
    return Feature(TensorSpec(description.name, (1,), "int64" if kind == "int64Type" else "str"), "label")


def _check_shape(feature: Feature, shape: tuple[int, ...]) -> None:
    """Refuse a shape that the package does not declare.

    Raises:
        ArtifactError: says which shape is expected.
    """
    spec = feature.spec
    if feature.shapes:
        if shape not in feature.shapes:
            raise ArtifactError(
                f"input {spec.name} has shape {list(shape)}; allowed: {[list(s) for s in feature.shapes]}"
            )
        return
    fits = len(shape) == len(spec.shape) and all(d in (-1, s) for d, s in zip(spec.shape, shape, strict=True))
    for size, (low, high) in zip(shape, feature.ranges, strict=False):
        fits = fits and size >= low and (high < 0 or size <= high)
    if not fits:
        expected = [list(r) for r in feature.ranges] if feature.ranges else list(spec.shape)
        raise ArtifactError(f"input {spec.name} has shape {list(shape)}; the package declares {expected}")


def _planes(feature: Feature, image: Array) -> Array:
    """Return an image as the program reads it: [N, C, H, W] in the declared colour layout."""
    channels = feature.spec.shape[-1]
    if image.ndim == 4 and image.shape[-1] == channels:
        _check_shape(feature, image.shape)
        planes = image.transpose(0, 3, 1, 2)
        return planes[:, ::-1] if feature.colour == "BGR" else planes
    if image.ndim == 4 and image.shape[1] == channels:
        n, c, h, w = image.shape
        _check_shape(feature, (n, h, w, c))
        return image
    raise ArtifactError(f"input {feature.spec.name} is an image {list(feature.spec.shape)}, not {list(image.shape)}")


def _cast(array: Array, dtype: str) -> Array:
    """Convert; what is too large for half precision becomes infinite, as on a device."""
    with np.errstate(over="ignore"):
        result: Array = array.astype(dtype)
    return result


def to_program(features: tuple[Feature, ...], inputs: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Check the inputs of a call and return them as the program's tensors, floats as float32.

    Raises:
        ArtifactError: one is missing, unknown, of another shape or of another kind of dtype than declared.
    """
    names = {f.spec.name for f in features}
    for name in inputs:
        if name not in names:
            raise ArtifactError(f"the package has no input {name!r}; it has {', '.join(sorted(names))}")
    tensors = {}
    for feature in features:
        spec = feature.spec
        if spec.name not in inputs:
            raise ArtifactError(f"input {spec.name} {list(spec.shape)} is missing")
        array = np.asarray(inputs[spec.name])
        if feature.kind == "image":
            array = _planes(feature, array).astype(np.float32)
        else:
            _check_shape(feature, array.shape)
            if array.dtype.kind == "f" and spec.dtype.startswith("int"):
                raise ArtifactError(f"input {spec.name} is declared as {spec.dtype}, not {array.dtype}")
            # A half-precision input really is rounded at the border, whatever the arithmetic behind it.
            array = _cast(array, spec.dtype)
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
        tensors[spec.name] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


def from_program(features: tuple[Feature, ...], values: Mapping[str, Any]) -> dict[str, Array]:
    """Return a call's results as arrays of the declared dtypes; images as [N, H, W, C] in RGB order."""
    outputs: dict[str, Array] = {}
    for feature in features:
        name, value = feature.spec.name, values[feature.spec.name]
        if feature.kind == "label":
            outputs[name] = np.asarray([value])
        elif feature.kind == "probabilities":
            outputs[name] = value.numpy().astype(np.float32)[None]
        elif feature.kind == "image":
            pixels = value.numpy()
            pixels = pixels[:, ::-1] if feature.colour == "BGR" else pixels
            limit = pixels if feature.spec.dtype == "float16" else np.clip(np.rint(pixels), 0, 255)
            outputs[name] = limit.transpose(0, 2, 3, 1).astype(feature.spec.dtype)
        else:
            outputs[name] = _cast(value.numpy(), feature.spec.dtype)
    return outputs
