"""Samples held as arrays in memory: what .npz files and built-in sets have in common."""

from __future__ import annotations

import numpy as np

from edgeopt.core.card import ModelCard
from edgeopt.core.errors import DataError
from edgeopt.core.model import TensorSpec
from edgeopt.data.labels import class_index, in_range
from edgeopt.data.preprocess import ImagePreprocessor, matches
from edgeopt.data.source import Array, Sample, digest, settings_digest


class ArraySource:
    """Arrays whose first dimension counts the samples, one array per model input.

    For a model of one float input, uint8 samples `[height, width]`, `[height, width, 1 or 3]` or
    `[1 or 3, height, width]` (RGB) are pixels and go through the card's preprocessing, even if they have the input's
    shape. Everything else has the input's shape and is passed as it is.
    """

    def __init__(
        self,
        kind: str,
        arrays: dict[str, Array],
        classes: list[int] | None,
        labels: tuple[str, ...] | None,
        card: ModelCard,
        inputs: tuple[TensorSpec, ...],
        places: dict[str, str],
        identity: str,
    ) -> None:
        """Settle how each array becomes its input.

        Args:
            kind: see `DataSource.kind`.
            arrays: by model input name, each `[samples, ...]`.
            classes: one class index per sample, or None.
            labels: class names, or None.
            card: gives the preprocessing.
            inputs: the model's.
            places: what each array is called in errors.
            identity: a digest of the content.

        Raises:
            DataError: an array's shape or dtype fits its input neither as it is nor as an image.
        """
        self.kind = kind
        self.labels = labels
        self._arrays = arrays
        self._classes = classes
        self._places = places
        self._specs = {spec.name: spec for spec in inputs}
        self._images = {
            name: ImagePreprocessor(card.preprocess, inputs)
            for name, array in arrays.items()
            if _is_pixels(array, self._specs[name], len(inputs), places[name])
        }
        self._identity = digest(identity, settings_digest(card, inputs, labels))

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        inputs: dict[str, Array] = {}
        for name, array in self._arrays.items():
            where = f"{self._places[name]}[{index}]"
            if name in self._images:
                inputs |= self._images[name].pixels(_channels_last(array[index]), where)
            else:
                inputs[name] = _cast(array[index], self._specs[name], where)
        return Sample(inputs, None if self._classes is None else self._classes[index], str(index))

    def fingerprint(self) -> str:
        """Return a sha256 over the arrays' content, labels and preprocessing."""
        return self._identity


def class_indices(values: Array, labels: tuple[str, ...] | None, where: str) -> list[int]:
    """Return one class index per sample from `[samples]` or `[samples, 1]` integers or label names.

    Raises:
        DataError: another shape or dtype, or an index out of range; names the first one.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{where}: labels of shape {list(values.shape)}; expected one integer per sample")
    if values.dtype.kind == "U":
        return [class_index(str(v), labels, f"{where}[{i}]") for i, v in enumerate(values)]
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: labels of dtype {values.dtype}; expected integers")
    return [in_range(int(v), labels, f"{where}[{i}]") for i, v in enumerate(values)]


def _is_pixels(array: Array, spec: TensorSpec, inputs: int, where: str) -> bool:
    """Tell whether samples are images to preprocess (True) or pass as they are (False)."""
    shape = array.shape[1:]
    image = array.dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and not {1, 3}.isdisjoint(shape[::2])))
    same = matches(shape, spec.shape[1:])
    if image and inputs == 1 and (not same or np.dtype(spec.dtype).kind == "f"):
        return True
    if not same:
        raise DataError(
            f"{where}: samples of shape {list(shape)}, dtype {array.dtype}, where the model takes "
            f"{list(spec.shape[1:])}, {spec.dtype}; images are uint8, [height, width] or [height, width, 1 or 3]"
        )
    if not np.can_cast(array.dtype, spec.dtype, "same_kind") and array.dtype.kind not in "iub":
        raise DataError(f"{where}: dtype {array.dtype} where the model takes {spec.dtype}")
    return False


def _channels_last(image: Array) -> Array:
    return image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[2] not in (1, 3) else image


def _cast(values: Array, spec: TensorSpec, where: str) -> Array:
    dtype = np.dtype(spec.dtype)
    result = np.ascontiguousarray(values, dtype)
    if dtype.kind in "iub" and not np.array_equal(result, values):
        raise DataError(f"{where}: values outside the range of {spec.dtype}")
    if dtype.kind == "f" and not np.isfinite(result).all():
        raise DataError(f"{where}: holds NaN or infinite values")
    return result
