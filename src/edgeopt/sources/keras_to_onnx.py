"""Keras and TensorFlow models as ONNX files; runs in a worker of its own, since TensorFlow takes long and may crash."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
import tf2onnx

from edgeopt.core.errors import SourceError, UsageError
from edgeopt.sources.keras_savedmodel import checked_copy

OPSET = 18
MAX_ELEMENTS = 2**31


@dataclass(frozen=True)
class Callable:
    """A model as a function of tensors.

    Attributes:
        function: takes tensors in the order of `inputs`, returns a tuple of tensors.
        inputs: name, shape (None where it is open) and dtype of each.
        outputs: names.
    """

    function: Any
    inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]
    outputs: tuple[str, ...]


class _DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
    """Takes and drops `groups`, which Keras of 2020 to 2023 wrote for this layer too."""

    def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)


def convert(
    *, path: str, kind: str, shapes: list[list[int]], named_shapes: dict[str, list[int]], trust: bool, out: str,
    samples: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a model as ONNX with fixed shapes.

    Args:
        path: of a file or a SavedModel folder that was checked.
        kind: `keras`, `h5` or `saved_model`.
        shapes, named_shapes: of the inputs; a batch that is open becomes 1.
        trust: may run code that the file carries.
        out: the ONNX file.
        samples: an `.npz` file for seeded inputs and the model's own outputs on them.

    Returns:
        `inputs` (name, shape, dtype, layout), `outputs` (names), `notes`.

    Raises:
        SourceError: it cannot be loaded or converted.
        UsageError: a shape that is missing or does not fit.
        UnsafeFileError: it would run code, without `trust`.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _load(Path(path), kind, Path(folder), trust)
        fixed = _fixed_shapes(model, path, shapes, named_shapes)
        specs = [
            tf.TensorSpec(shape, dtype, name=f"input_{i}")
            for i, (shape, (_, _, dtype)) in enumerate(zip(fixed, model.inputs, strict=True))
        ]
        function = tf.function(model.function, input_signature=specs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tf2onnx.convert.from_function(function, specs, opset=OPSET, output_path=out)
        except Exception as error:
            raise SourceError(f"{path}: TensorFlow's graph cannot become ONNX: {_reason(error)}") from error
        if samples is not None:
            _store_samples(function, specs, Path(samples))
    record = [
        {"name": name, "shape": list(shape), "dtype": dtype, "layout": "NHWC" if len(shape) == 4 else ""}
        for shape, (name, _, dtype) in zip(fixed, model.inputs, strict=True)
    ]
    return {"inputs": record, "outputs": list(model.outputs)}


def _load(path: Path, kind: str, folder: Path, trust: bool) -> Callable:
    if kind == "saved_model":
        checked_copy(path, folder / "model", trust=trust)
        return _saved_model(folder / "model", path)
    try:
        source = _with_input_layers(path, folder / "model.h5") if kind == "h5" else path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(
                source, custom_objects={"DepthwiseConv2D": _DepthwiseConv2D}, compile=False, safe_mode=not trust
            )
    except Exception as error:
        raise SourceError(f"{path}: Keras {keras.__version__} cannot load it: {_reason(error)}") from error
    return _keras_model(model, path)


def _with_input_layers(path: Path, copy: Path) -> Path:
    """Return the file, or a copy in which Sequential models of before 2020 begin with an InputLayer.

    They tell the input's shape in their first layer, as `batch_input_shape`, which today's Keras takes for the shape of
    one sample.
    """
    with h5py.File(path) as file:
        text = file.attrs["model_config"]
    configuration = json.loads(text)
    if not _declare_input(configuration):
        return path
    shutil.copyfile(path, copy)
    with h5py.File(copy, "a") as file:
        file.attrs["model_config"] = json.dumps(configuration)
    return copy


def _declare_input(model: Any) -> bool:
    """Put an InputLayer before the first layer of each Sequential model, in place; tells whether any was missing."""
    settings = model.get("config") if isinstance(model, dict) else None
    layers = settings if isinstance(settings, list) else settings.get("layers") if isinstance(settings, dict) else None
    if not isinstance(layers, list) or not layers:
        return False
    changed = [_declare_input(layer) for layer in layers]
    first = layers[0].get("config") if isinstance(layers[0], dict) else None
    if not isinstance(first, dict):
        return any(changed)
    shape = first.get("batch_input_shape")
    if model.get("class_name") != "Sequential" or shape is None or layers[0].get("class_name") == "InputLayer":
        return any(changed)
    dtype = first.get("dtype")
    told = {"batch_input_shape": shape, "name": f"{first.get('name', '')}_input"}
    told["dtype"] = dtype if isinstance(dtype, str) else "float32"
    layers.insert(0, {"class_name": "InputLayer", "config": told})
    return True


def _keras_model(model: Any, path: Path) -> Callable:
    graph = getattr(model, "_functional", None) or model  # a Sequential model keeps its graph in another
    structure = getattr(graph, "_inputs_struct", None)
    if structure is None or not getattr(graph, "inputs", None):
        raise SourceError(f"{path}: the model does not tell its inputs; build it with an Input layer and save it again")
    tensors = keras.tree.flatten(structure)

    def function(*args: Any) -> tuple[Any, ...]:
        results = model(keras.tree.pack_sequence_as(structure, list(args)), training=False)
        return tuple(keras.tree.flatten(results))

    names = [str(t.name).partition(":")[0] for t in tensors]
    inputs = tuple((n, tuple(t.shape), str(t.dtype)) for n, t in zip(names, tensors, strict=True))
    outputs = [str(n) for n in getattr(graph, "output_names", ())]
    count = len(keras.tree.flatten(graph.outputs))
    return Callable(function, inputs, tuple(outputs) if len(outputs) == count else ())


def _saved_model(folder: Path, path: Path) -> Callable:
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        raise SourceError(f"{path}: TensorFlow {tf.__version__} cannot load it: {_reason(error)}") from error
    signatures = dict(loaded.signatures)
    key = "serving_default" if "serving_default" in signatures else next(iter(sorted(signatures)), "")
    if not key or (key != "serving_default" and len(signatures) > 1):
        told = f"signatures {', '.join(sorted(signatures))[:200]}" if signatures else "no signature"
        raise SourceError(f"{path}: has {told}; save it with one named serving_default")
    signature = signatures[key]
    specs = signature.structured_input_signature[1]
    names = sorted(specs)
    outputs = sorted(signature.structured_outputs)

    def function(*args: Any) -> tuple[Any, ...]:
        keep_alive = loaded  # its variables end with it
        results = signature(**dict(zip(names, args, strict=True)))
        assert keep_alive is not None
        return tuple(results[name] for name in outputs)

    inputs = tuple(
        (n, tuple(specs[n].shape) if specs[n].shape.rank is not None else (None,), specs[n].dtype.name) for n in names
    )
    return Callable(function, inputs, tuple(outputs))


def _fixed_shapes(
    model: Callable, path: str, shapes: Sequence[Sequence[int]], named: Mapping[str, Sequence[int]]
) -> list[tuple[int, ...]]:
    names = [name for name, _, _ in model.inputs]
    loose = [name for name, shape, _ in model.inputs if None in shape[1:]]
    given = {name: tuple(shape) for name, shape in named.items()}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UsageError(f"{path} has no input {unknown[0]!r}; known: {', '.join(names)}")
    if shapes:
        targets = names if len(shapes) == len(names) else loose
        if len(shapes) != len(targets):
            raise UsageError(f"{path} has {len(names)} inputs, --input-shape gives {len(shapes)}")
        given = {**dict(zip(targets, (tuple(s) for s in shapes), strict=True)), **given}
    return [_fixed(path, name, shape, given.get(name)) for name, shape, _ in model.inputs]


def _fixed(path: str, name: str, declared: tuple[int | None, ...], given: tuple[int, ...] | None) -> tuple[int, ...]:
    place = f"input {name!r} of {path}"
    form = ",".join("N" if d is None else str(d) for d in declared)
    shape = given if given is not None else tuple(1 if d is None and i == 0 else d for i, d in enumerate(declared))
    if any(d is None for d in shape):
        raise UsageError(f"{place}: its shape {form} is not fixed; give --input-shape in numbers")
    if len(shape) != len(declared) or any(d not in (None, s) for d, s in zip(declared, shape, strict=True)):
        raise UsageError(f"{place}: the shape {list(shape)} does not fit its own, {form}")
    fixed = tuple(int(d) for d in shape if d is not None)
    if any(d <= 0 for d in fixed) or np.prod(np.array(fixed, dtype=np.float64)) > MAX_ELEMENTS:
        raise SourceError(f"{place}: its shape {form} is not one that a model for a device can have")
    return fixed


def _store_samples(function: Any, specs: Sequence[Any], path: Path) -> None:
    random = np.random.default_rng(0)
    inputs = [
        random.standard_normal(s.shape).astype(s.dtype.as_numpy_dtype)
        if s.dtype.is_floating
        else random.integers(0, 2, s.shape).astype(s.dtype.as_numpy_dtype)
        for s in specs
    ]
    results = function(*(tf.constant(x) for x in inputs))
    arrays: dict[str, Any] = {f"input_{i}": x for i, x in enumerate(inputs)}
    arrays.update({f"output_{i}": np.asarray(y) for i, y in enumerate(results)})
    np.savez(path, **arrays)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if any(c.isalnum() for c in line)]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
