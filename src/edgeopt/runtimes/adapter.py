"""Feeds an artifact the original's arrays, whatever names, memory order and integer types its own contract has."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.runtimes.session import Arrays, Session

LAST = (0, 2, 3, 1)
FIRST = (0, 3, 1, 2)


class Adapter:
    """A session that takes the original's inputs and gives outputs as the original does.

    Inputs and outputs are matched by name; failing that by shape where shapes tell them apart, else by position.
    NCHW becomes NHWC where only that fits; integer types are widened or narrowed; quantized inputs and outputs go
    through their scale and zero point.

    Raises:
        ArtifactError: the counts differ, or a shape fits in no order.
    """

    def __init__(self, session: Session, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._session = session
        self._inputs = _match("inputs", inputs, session.inputs)
        self._outputs = _match("outputs", outputs, session.outputs)

    def feed(self, inputs: Arrays) -> Arrays:
        """Return the original's inputs as the artifact wants them."""
        return {own.name: _to_artifact(inputs[source.name], own) for source, own in self._inputs}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once on the original's inputs."""
        results = self._session(self.feed(inputs))
        return {source.name: _from_artifact(results[own.name], own, source) for source, own in self._outputs}


def _match(
    what: str, sources: tuple[TensorSpec, ...], own: tuple[TensorSpec, ...]
) -> tuple[tuple[TensorSpec, TensorSpec], ...]:
    if len(sources) != len(own):
        raise ArtifactError(f"the artifact has {len(own)} {what}, the original {len(sources)}")
    by_name = {spec.name: spec for spec in own}
    if all(s.name in by_name for s in sources):
        pairs = tuple((s, by_name[s.name]) for s in sources)
    else:
        pairs = tuple(zip(sources, own, strict=True))
        if not all(_fits(a.shape, b.shape) for a, b in pairs) and len(own) <= 6:
            orders = [
                order
                for order in permutations(own)
                if all(_fits(a.shape, b.shape) for a, b in zip(sources, order, strict=True))
            ]
            if len(orders) == 1:
                pairs = tuple(zip(sources, orders[0], strict=True))
    for source, spec in pairs:
        if not _fits(source.shape, spec.shape):
            raise ArtifactError(
                f"{what[:-1]} {spec.name} has shape {list(spec.shape)}, the original's {source.name} "
                f"{list(source.shape)}"
            )
    return pairs


def _fits(source: tuple[int, ...], own: tuple[int, ...]) -> bool:
    return any(_same(candidate, own) for candidate in _orders(source))


def _orders(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(shape) != 4:
        return [shape]
    return [shape, tuple(shape[a] for a in LAST), tuple(shape[a] for a in FIRST)]


def _same(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    if not own and shape:
        return True  # a runtime that does not tell
    return len(shape) == len(own) and all(b in (-1, a) for a, b in zip(shape, own, strict=True))


def _to_artifact(array: np.ndarray, own: TensorSpec) -> np.ndarray:
    if not _same(array.shape, own.shape):
        order = LAST if _same(tuple(array.shape[a] for a in LAST), own.shape) else FIRST
        array = array.transpose(order)
    if own.scale is not None and array.dtype.kind == "f":
        limits = np.iinfo(own.dtype)
        array = np.clip(np.rint(array / own.scale) + (own.zero_point or 0), limits.min, limits.max)
    return np.ascontiguousarray(array, dtype=np.dtype(own.dtype))


def _from_artifact(array: np.ndarray, own: TensorSpec, source: TensorSpec) -> np.ndarray:
    if own.scale is not None and array.dtype.kind in "iu":
        array = (array.astype(np.float32) - (own.zero_point or 0)) * np.float32(own.scale)
    if not _same(array.shape, source.shape) and array.ndim == 4:
        for order in (FIRST, LAST):
            if _same(tuple(array.shape[a] for a in order), source.shape):
                return array.transpose(order)
    if not _same(array.shape, source.shape):
        raise ArtifactError(f"output {own.name} has shape {list(array.shape)}, the original's {list(source.shape)}")
    return array
