"""ONNX files; shapes come from ONNX's own inference, nothing is executed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.inspection import macs
from edgeopt.inspection.onnx_shapes import MULTIPLY_FREE, Shapes, dimensions, first_line, infer_shapes
from edgeopt.inspection.record import BITS, Inspection, Tally, counts_as_weight, dtype_bytes
from edgeopt.onnx_import.expansion import all_nodes, expanded_nodes

_DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}
_SAME_WEIGHT = (
    "DequantizeLinear",
    "QuantizeLinear",
    "Identity",
    "Cast",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
)
_QUANTIZED_WEIGHTS = {
    "DequantizeLinear": (0,), "QLinearConv": (3, 8), "ConvInteger": (1,), "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1), "QGemm": (3, 6), "MatMulNBits": (1,), "GatherBlockQuantized": (0,),
}  # fmt: skip
"""Inputs at which an operator takes integers that stand for reals; all other integers are shapes and indices."""
_PARAMETERS_OF_QUANTIZATION = {
    "DequantizeLinear": (1, 2), "QuantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8), "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3), "Resize": (1, 2), "Upsample": (1,),
}  # fmt: skip
"""Inputs that are scales, zero points or factors of a geometry: no parameters, though they may be floats."""


def inspect(path: Path) -> Inspection:
    """Inspect an `.onnx` file.

    Raises:
        ArtifactError: not an ONNX model, or damaged.
    """
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an ONNX model, or is damaged: {first_line(error)}") from error
    if not model.graph.node or not model.opset_import:
        raise ArtifactError(f"{path} is not an ONNX model, or is damaged: it has no graph or names no operator set")
    try:
        expanded_nodes(model)
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a valid ONNX model: {first_line(error)}") from error
    tally = Tally()
    constants = _constants(model.graph)
    for name, tensor in constants.items():
        _check_stored(tensor, name, path)
    inputs = [_spec(v) for v in model.graph.input if v.name not in constants]
    outputs = [_spec(v) for v in model.graph.output]
    model, shapes = infer_shapes(model, constants, tally)
    _count_weights(model.graph, constants, tally)
    _count_nodes(model.graph, constants, shapes, tally)
    inner = sum(1 for _ in all_nodes(model.graph.node)) - len(model.graph.node)
    if inner:
        tally.notes.append(f"{inner} operators inside control flow are listed, their multiply-accumulates not counted")
    external = _external_bytes(model, path, tally)
    return tally.result("onnx", len(data) + external, inputs, outputs)


def _count_weights(graph: onnx.GraphProto, constants: dict[str, TensorProto], tally: Tally) -> None:
    quantized: set[str] = set()
    aside: set[str] = set()
    for node in graph.node:
        for table, names in ((_QUANTIZED_WEIGHTS, quantized), (_PARAMETERS_OF_QUANTIZATION, aside)):
            names.update(node.input[i] for i in table.get(node.op_type, ()) if i < len(node.input))
    for name, tensor in constants.items():
        elements, dtype = math.prod(tensor.dims), _dtype(tensor.data_type)
        if name not in aside and counts_as_weight(dtype, elements, name in quantized):
            tally.weight(name, dtype, elements)


def _count_nodes(graph: onnx.GraphProto, constants: dict[str, TensorProto], shapes: Shapes, tally: Tally) -> None:
    tally.ops.update(_op(n) for n in all_nodes(graph.node) if _op(n) != "Constant")
    origin: dict[str, str] = {name: name for name in constants}
    for node in graph.node:
        op = _op(node)
        if op == "Constant":
            continue
        if node.op_type in _SAME_WEIGHT and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
            continue
        held = {origin[i] for i in node.input if i in origin and origin[i] in tally.weights}
        known = [shapes.get(name) for name in node.input]
        output = shapes.get(node.output[0]) if node.output else None
        count: int | None = 0
        if node.op_type in _MACS:
            count = _MACS[node.op_type](node, known, output)
        elif node.domain not in ("", "ai.onnx", "ai.onnx.ml") or node.op_type in ("Attention", "DeformConv"):
            if node.op_type in MULTIPLY_FREE:
                continue
            tally.uncounted[op] += 1
        name = node.name or next(iter(node.output), op)
        parameters = sum(tally.weights[h].elements for h in held)
        tally.layer(name, op, parameters, count, output or ())


def _op(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


_Known = list["tuple[int, ...] | None"]


def _conv(_: onnx.NodeProto, known: _Known, output: macs.Shape) -> int | None:
    return macs.convolution(output, known[1])


def _conv_transpose(_: onnx.NodeProto, known: _Known, __: macs.Shape) -> int | None:
    return macs.transposed_convolution(known[0], known[1])


def _q_conv(_: onnx.NodeProto, known: _Known, output: macs.Shape) -> int | None:
    return macs.convolution(output, known[3])


def _matmul(_: onnx.NodeProto, known: _Known, output: macs.Shape) -> int | None:
    return macs.matmul(known[0], output)


def _gemm(node: onnx.NodeProto, known: _Known, output: macs.Shape) -> int | None:
    transposed = any(a.name in ("transA", "transposeA") and a.i for a in node.attribute)
    return macs.matmul(known[0], output, transposed)


def _fused_matmul(node: onnx.NodeProto, known: _Known, output: macs.Shape) -> int | None:
    return macs.matmul(known[0], output, any(a.name == "transA" and a.i for a in node.attribute))


def _einsum(node: onnx.NodeProto, known: _Known, _: macs.Shape) -> int | None:
    equation = next((a.s.decode("utf-8", "replace") for a in node.attribute if a.name == "equation"), "")
    return macs.einsum(equation, known)


def _recurrent(gates: int) -> Callable[[onnx.NodeProto, _Known, macs.Shape], int | None]:
    def count(node: onnx.NodeProto, known: _Known, _: macs.Shape) -> int | None:
        x, weight = known[0], known[1]
        hidden = next((a.i for a in node.attribute if a.name == "hidden_size"), -1)
        if x is None or weight is None or len(x) != 3 or len(weight) != 3:
            return None
        return macs.recurrent(gates, x[0], x[1], x[2], hidden, weight[0])

    return count


_MACS: dict[str, Callable[[onnx.NodeProto, _Known, macs.Shape], int | None]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "FusedConv"), _conv),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits"), _matmul),
    **dict.fromkeys(("Gemm", "QGemm", "FusedGemm"), _gemm),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "FusedMatMul": _fused_matmul,
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "QLinearConv": _q_conv,
    "RNN": _recurrent(1),
}


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    found = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def _check_stored(tensor: TensorProto, name: str, path: Path) -> None:
    dtype, dims = _dtype(tensor.data_type), list(tensor.dims)
    if any(d < 0 for d in dims):
        raise ArtifactError(f"{path} is damaged: tensor {name!r} has shape {dims}; make it again")
    if tensor.HasField("raw_data") and dtype in BITS and len(tensor.raw_data) != dtype_bytes(dtype, math.prod(dims)):
        raise ArtifactError(
            f"{path} is damaged: tensor {name!r} of shape {dims} has {len(tensor.raw_data)} bytes; make it again"
        )


def _external_bytes(model: onnx.ModelProto, path: Path, tally: Tally) -> int:
    """Return the size of external data that lies directly beside the model; links are not followed."""
    names = {
        e.value
        for t in model.graph.initializer
        if t.data_location == TensorProto.EXTERNAL
        for e in t.external_data
        if e.key == "location"
    }
    files = [path.parent / n for n in names if n and Path(n).name == n]
    sizes = [f.stat().st_size for f in files if f.is_file() and not f.is_symlink()]
    if len(sizes) < len(names):
        tally.notes.append("size_bytes leaves out external data that is not a plain file beside the model")
    return sum(sizes)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    return TensorSpec(value.name, dimensions(value), _dtype(value.type.tensor_type.elem_type))


def _dtype(element_type: int) -> str:
    if element_type in _DTYPES:
        return _DTYPES[element_type]
    known = element_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(element_type).lower() if known else str(element_type)
