"""Core ML packages (ML Programs), by their protobuf specification and weight file; nothing is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremltools.proto import MIL_pb2, Model_pb2
from google.protobuf.message import DecodeError

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.inspection import macs
from edgeopt.inspection.coreml_package import WeightFile, find_specification
from edgeopt.inspection.record import BITS, Inspection, Tally, counts_as_weight, dtype_bytes

_ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
_QUANTIZATION = ("scale", "zero_point", "offset", "lut", "mask", "input_scale", "output_scale")
_DATA_ARGUMENTS = ("quantized_data", "data", "indices", "nonzero_data", "source_val")
_NO_WEIGHTS = ("quantize", "dequantize")


@dataclass(frozen=True)
class _Constant:
    """A `const` or `constexpr_*` operator's result: stored numbers that stand for `shape`."""

    shape: tuple[int, ...]
    dtype: str
    stored_dtype: str
    value: Any = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def inspect(path: Path) -> Inspection:
    """Inspect an `.mlpackage` folder or an `.mlmodel` file.

    Raises:
        ArtifactError: not a Core ML model, or damaged.
    """
    specification = find_specification(path)
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(specification.read_bytes())
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{specification} is no Core ML specification, or is damaged: {error}") from error
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise ArtifactError(f"{specification} is no Core ML specification, or is damaged: it names no kind of model")
    tally = Tally()
    if kind == "mlProgram":
        weights = WeightFile(specification.parent)
        functions = list(spec.mlProgram.functions.values())
        for function in functions:
            block = function.block_specializations.get(function.opset)
            if block is None:
                raise ArtifactError(f"{specification} is damaged: its function has no block for {function.opset!r}")
            shapes = {i.name: _type(i.type)[0] for i in function.inputs}
            walk = _Walk(tally, weights, specification)
            walk.block(block, shapes)
            if walk.sparse:
                tally.notes.append(
                    f"{walk.sparse} weights are stored sparse: their zeros count as parameters, not as bytes"
                )
        if len(functions) > 1:
            tally.notes.append(f"{len(functions)} functions; each is counted once")
        tally.notes.extend(weights.notes)
    else:
        _count_other(spec, kind, tally)
    inputs = [_spec(f) for f in spec.description.input]
    outputs = [_spec(f) for f in spec.description.output]
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and not f.is_symlink()]
    return tally.result("coreml", sum(f.stat().st_size for f in files), inputs, outputs)


class _Walk:
    """Counts the operators of a block, in order; nested blocks see what is defined outside."""

    def __init__(self, tally: Tally, weights: WeightFile, place: Path) -> None:
        self.tally = tally
        self.weights = weights
        self.place = place
        self.constants: dict[str, _Constant] = {}
        self.aside: set[str] = set()
        self.dequantized: set[str] = set()
        self.sparse = 0

    def block(self, block: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self.aside |= {
            binding.name
            for op in block.operations
            for argument, values in op.inputs.items()
            if argument in _QUANTIZATION and (op.type.startswith("constexpr_") or op.type in _NO_WEIGHTS)
            for binding in values.arguments
        }
        self.dequantized |= {_bound(op, "input") for op in block.operations if op.type == "dequantize"}
        derived = {
            binding.name
            for op in block.operations
            if op.type.startswith("constexpr_")
            for values in op.inputs.values()
            for binding in values.arguments
        }
        for op in block.operations:
            for output in op.outputs:
                shapes[output.name] = _type(output.type)[0]
            if not op.outputs:
                continue
            name = op.outputs[0].name
            if op.type == "const":
                self._constant(op, name, counted=name not in derived and name not in self.aside)
            elif op.type.startswith("constexpr_"):
                self._compressed(op, name, counted=name not in derived)
            else:
                self._operator(op, name, shapes)
            for inner in op.blocks:
                self.tally.notes.append(f"the multiply-accumulates inside {op.type} are counted once")
                self.block(inner, dict(shapes))

    def _constant(self, op: Any, name: str, counted: bool) -> None:
        shape, dtype = _type(op.outputs[0].type)
        if any(d < 0 for d in shape):
            raise ArtifactError(f"{self.place} is damaged: constant {name!r} has no fixed shape; make it again")
        value = _attribute(op, "val")
        self.weights.check(value, dtype, math.prod(shape), name)
        self.constants[name] = _Constant(shape, dtype, dtype, _immediate(value))
        if counted and counts_as_weight(dtype, math.prod(shape), name in self.dequantized):
            self.tally.weight(name, dtype, math.prod(shape))

    def _compressed(self, op: Any, name: str, counted: bool) -> None:
        self.tally.ops[op.type] += 1
        shape, dtype = _type(op.outputs[0].type)
        stored_dtype, stored = dtype, None
        for argument in _DATA_ARGUMENTS:
            held = self._held(op, argument)
            if held is not None:
                stored_dtype = held.stored_dtype
                if "sparse" in op.type:
                    stored = dtype_bytes(stored_dtype, held.elements) + math.ceil(math.prod(shape) / 8)
        if "lut" in op.type:
            stored_dtype = self._palette_dtype(op, stored_dtype)
        self.constants[name] = _Constant(shape, dtype, stored_dtype)
        if counted:
            self.sparse += stored is not None
            self.tally.weight(name, stored_dtype, math.prod(shape), stored)

    def _held(self, op: Any, argument: str) -> _Constant | None:
        """Return what a compressed weight holds as `argument`: an attribute, a value in place, or another constant."""
        value = _attribute(op, argument)
        if value is None and argument in op.inputs:
            bound = next(iter(op.inputs[argument].arguments), None)
            if bound is not None and bound.WhichOneof("binding") == "name":
                return self.constants.get(bound.name)
            value = None if bound is None else bound.value
        if value is None:
            return None
        shape, dtype = _type(value.type)
        self.weights.check(value, dtype, math.prod(shape), op.outputs[0].name)
        return _Constant(shape, dtype, dtype)

    def _palette_dtype(self, op: Any, stored: str) -> str:
        """Return `uint4` for indices into 16 colours, and so on."""
        table = self._held(op, "lut")
        if table is None or not table.shape or not stored.startswith("uint"):
            return stored
        colours = table.shape[0] if len(table.shape) == 1 else table.shape[-2]
        name = f"uint{max(colours - 1, 1).bit_length()}"
        return name if name in BITS else stored

    def _operator(self, op: Any, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.tally.ops[op.type] += 1
        bound = [b.name for values in op.inputs.values() for b in values.arguments if b.name in self.constants]
        held = {b for b in bound if b in self.tally.weights}
        if op.type in ("quantize", "dequantize") and held:
            source = self.constants.get(_bound(op, "input"))
            if source is not None:
                self.constants[name] = source
        if op.type in ("lstm", "gru", "rnn"):
            self.tally.uncounted[op.type] += 1
        count = _MACS[op.type](op, shapes, self.constants) if op.type in _MACS else 0
        parameters = sum(self.tally.weights[h].elements for h in held)
        self.tally.layer(name, op.type, parameters, count, shapes[name])


_Shapes = dict[str, tuple[int, ...]]
_Constants = dict[str, _Constant]


def _bound(op: Any, argument: str) -> str:
    """Return the name of the value bound to an argument, or ``."""
    arguments = op.inputs[argument].arguments if argument in op.inputs else ()
    return next((str(b.name) for b in arguments if b.WhichOneof("binding") == "name"), "")


def _attribute(op: Any, name: str) -> Any:
    """Return an attribute, or None (indexing a protobuf map would add the key)."""
    return op.attributes[name] if name in op.attributes else None  # noqa: SIM401 - maps of messages have no default


def _flag(op: Any, argument: str, constants: _Constants) -> bool:
    constant = constants.get(_bound(op, argument))
    return bool(constant and constant.value)


def _conv(op: Any, shapes: _Shapes, _: _Constants) -> int | None:
    return macs.convolution(shapes[op.outputs[0].name], shapes.get(_bound(op, "weight")))


def _conv_transpose(op: Any, shapes: _Shapes, _: _Constants) -> int | None:
    return macs.transposed_convolution(shapes.get(_bound(op, "x")), shapes.get(_bound(op, "weight")))


def _linear(op: Any, shapes: _Shapes, _: _Constants) -> int | None:
    return macs.matmul(shapes.get(_bound(op, "x")), shapes[op.outputs[0].name])


def _matmul(op: Any, shapes: _Shapes, constants: _Constants) -> int | None:
    transposed = _flag(op, "transpose_x", constants)
    return macs.matmul(shapes.get(_bound(op, "x")), shapes[op.outputs[0].name], transposed)


def _einsum(op: Any, shapes: _Shapes, constants: _Constants) -> int | None:
    equation = constants.get(_bound(op, "equation"))
    names = [b.name for b in op.inputs["values"].arguments]
    return macs.einsum(str(equation.value), [shapes.get(n) for n in names]) if equation else None


def _attention(op: Any, shapes: _Shapes, _: _Constants) -> int | None:
    query, key, value = (shapes.get(_bound(op, a)) for a in ("query", "key", "value"))
    return macs.attention(query, key, value)


_MACS: dict[str, Callable[[Any, _Shapes, _Constants], int | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}


def _type(value_type: Any) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of a tensor type; a dimension that varies is -1."""
    tensor = value_type.tensorType
    shape = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    known = tensor.dataType in MIL_pb2.DataType.values()
    return shape, MIL_pb2.DataType.Name(tensor.dataType).lower() if known else str(tensor.dataType)


def _immediate(value: Any) -> Any:
    """Return a number, flag or text stored in the specification itself, else None."""
    if value is None or value.WhichOneof("value") != "immediateValue":
        return None
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    values: Any = getattr(tensor, kind).values if kind and hasattr(getattr(tensor, kind), "values") else ()
    return values[0] if len(values) == 1 and not isinstance(values, bytes) else None


def _count_other(spec: Any, kind: str, tally: Tally) -> None:
    """List the layers of a model that is no ML Program."""
    tally.opaque = True
    tally.notes.append(f"macs is null and parameters are not counted: a {kind} model, not an ML Program")
    holder = getattr(spec, kind)
    for layer in getattr(holder, "layers", ()):
        tally.ops[layer.WhichOneof("layer") or "unknown"] += 1


def _spec(feature: Any) -> TensorSpec:
    array = feature.type.multiArrayType
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        return TensorSpec(feature.name, (image.height, image.width), "uint8")
    return TensorSpec(feature.name, tuple(array.shape), _ARRAY_TYPES.get(array.dataType, "float32"))
