"""An `.onnx` file, checked, with functions inlined, input shapes fixed and the graph simplified."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.numpy_helper
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnxslim.core import OptimizationSettings, optimize, shape_infer

from edgeopt.core.errors import SourceError, UsageError, did_you_mean
from edgeopt.onnx_import.expansion import ExpansionError, all_nodes, expanded_nodes
from edgeopt.onnx_import.external import load_external_data
from edgeopt.onnx_import.tensors import check_elements

OPSETS = range(7, 26)
"""Tested with 11 to 23; older and newer ones differ little in the operators that are imported."""

_SKIPPED = (
    "FusionConvBN",  # stages fold batch normalization themselves
    "FusionConvTransposeBN",
    "FusionConvTransposeMul",
    "FusionConvMul",  # onnxslim 0.1.98 takes a factor along the last axis for one per channel; patterns.py folds these
    "FusionGemm",  # flattens the input and loses the weight's name; patterns.py does both without
    "FusionGemmAdd",
    "FusionGemmMul",
)
_UNBOUNDED = ("Loop", "Scan")
_ROUNDS = 3
"""onnxslim itself goes on to ten, which takes 20 s on a Swin; what is left to fold the graph builder folds."""
_FAILURES_OF_SIMPLIFIER = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read and check a model, with its external data.

    Raises:
        UsageError: there is no such file.
        UnsafeFileError: external data outside the model's folder.
        SourceError: not an ONNX model, damaged, or of an opset outside `OPSETS`.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError, OSError) as error:
        raise SourceError(f"{path} is not an ONNX model, or is damaged: {_first_line(error)}") from error
    if not model.graph.node or not model.opset_import:
        raise SourceError(f"{path} is not an ONNX model: it has no graph or names no operator set")
    try:
        expanded_nodes(model)
    except ExpansionError as error:
        raise SourceError(f"{path} cannot be imported: {error}") from error
    bodies = [n for nodes in (model.graph.node, *(f.node for f in model.functions)) for n in all_nodes(nodes)]
    loops = any(n.op_type in _UNBOUNDED and n.domain in ("", "ai.onnx") for n in bodies)
    load_external_data(model, path.parent)
    try:
        onnx.checker.check_model(model, full_check=not loops)  # the full check runs a Loop of constants to its end
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
        raise SourceError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    opset_of(model, path)
    return model


def opset_of(model: onnx.ModelProto, path: Path) -> int:
    """Return the version of the default operator set.

    Raises:
        SourceError: there is none, or it is outside `OPSETS`.
    """
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    if version is None:
        raise SourceError(f"{path} uses no operator of the standard ONNX set; export it with opset 17 or later")
    if version not in OPSETS:
        raise SourceError(
            f"{path} is of opset {version}; {OPSETS.start} to {OPSETS.stop - 1} can be imported: convert it with "
            "onnx.version_converter"
        )
    return int(version)


def inline_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Replace calls of the model's own functions by their bodies.

    Raises:
        SourceError: they cannot be inlined.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"{path}: its functions cannot be inlined: {_first_line(error)}") from error


def fix_values(model: onnx.ModelProto, path: Path, values: Mapping[str, np.ndarray] | None) -> None:
    """Turn inputs into constants, in place.

    Raises:
        UsageError: there is no such input, or it is of another type.
    """
    inputs = {i.name: i for i in model.graph.input}
    for name, value in (values or {}).items():
        if name not in inputs:
            raise UsageError(f"{path} has no input {name!r}{did_you_mean(name, list(inputs))}")
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name)
        declared = inputs[name].type.tensor_type.elem_type
        if tensor.data_type != declared:
            wanted = TensorProto.DataType.Name(declared)
            raise UsageError(f"{path}: input {name!r} is of type {wanted}, the value given for it of {value.dtype}")
        model.graph.initializer.append(tensor)
        model.graph.input.remove(inputs[name])


def fix_shapes(
    model: onnx.ModelProto, path: Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Give every graph input a fixed shape, in place, and forget shapes inferred before.

    A symbolic batch (the first dimension) becomes 1 unless given. A symbol given for one input holds for all.

    Returns:
        Name and shape of each input, in order.

    Raises:
        UsageError: a symbolic dimension that is not given, or a given shape that does not fit.
        SourceError: an input is not a tensor, or its size is absurd.
    """
    given = dict(input_shapes or {})
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    names = [i.name for i in inputs]
    for name in given:
        if name not in names:
            raise UsageError(f"{path} has no input {name!r}{did_you_mean(name, names)}")
    symbols = _symbols(inputs, given)
    shapes = {i.name: _fixed_shape(i, given.get(i.name), symbols, path) for i in inputs}
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in inputs:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in shapes[value.name]:
            shape.dim.add().dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        for axis in output.type.tensor_type.shape.dim:
            axis.Clear()
    return shapes


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and redundant operators with onnxslim; return `model` itself where it cannot.

    A model with branches or loops is left as it is: the graph builder folds what its constants settle.
    Equal weights are not tied: layers that merely start out equal must stay apart.
    """
    if any(a.HasField("g") for n in model.graph.node for a in n.attribute):
        return model  # onnxslim looks into subgraphs in part only
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    _spell_out_constants(slim.graph)
    OptimizationSettings.reset(["weight_tying"])
    try:
        for _ in range(_ROUNDS):
            before = len(slim.graph.node)
            slim = shape_infer(optimize(slim, _SKIPPED, size_threshold=1 << 26))
            if len(slim.graph.node) == before:
                break
    except _FAILURES_OF_SIMPLIFIER as error:
        logging.getLogger(__name__).info("onnxslim failed (%s); the graph is imported as it is", error)
        return model
    return slim if slim.graph.node else model


def _spell_out_constants(graph: onnx.GraphProto) -> None:
    """Rewrite `value_float` and its kin as tensors: onnxslim reads them as float64."""
    kinds = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}
    for node in graph.node:
        name = node.attribute[0].name if node.op_type == "Constant" and node.attribute else ""
        if name.removesuffix("s") in kinds:
            value = onnx.helper.get_attribute_value(node.attribute[0])
            values = list(value) if name.endswith("s") else [value]
            dims = [len(values)] if name.endswith("s") else []
            tensor = onnx.helper.make_tensor("value", kinds[name.removesuffix("s")], dims, values)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))


def _symbols(inputs: list[onnx.ValueInfoProto], given: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in inputs:
        for axis, size in zip(value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False):
            if axis.dim_param:
                found.setdefault(axis.dim_param, size)
    return found


def _fixed_shape(
    value: onnx.ValueInfoProto, given: tuple[int, ...] | None, symbols: Mapping[str, int], path: Path
) -> tuple[int, ...]:
    place = f"input {value.name!r} of {path}"
    if not value.type.HasField("tensor_type"):
        raise SourceError(f"{place} is not a tensor; only tensors can be imported")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        if given is None:
            raise UsageError(f"{place} declares no shape; give one, as in --input-shape 1,3,224,224")
        return given
    dims = list(kind.shape.dim)
    if given is not None and len(given) != len(dims):
        raise UsageError(f"{place} has {len(dims)} dimensions; the given shape {list(given)} has {len(given)}")
    shape = []
    for axis, dim in enumerate(dims):
        fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        if fixed is not None and given is not None and given[axis] != fixed:
            raise UsageError(f"{place}: dimension {axis} is {fixed}; the given shape {list(given)} does not fit")
        if given is not None:
            size: int | None = given[axis]
        else:
            size = fixed or symbols.get(dim.dim_param) or (1 if axis == 0 else None)
        if size is None or size <= 0:
            symbol = f" ({dim.dim_param!r})" if dim.dim_param else ""
            form = ",".join(str(d.dim_value or d.dim_param or "N") for d in dims)
            raise UsageError(f"{place}: dimension {axis}{symbol} is not fixed; give --input-shape {form} in numbers")
        shape.append(size)
    check_elements(tuple(shape), place)
    return tuple(shape)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
