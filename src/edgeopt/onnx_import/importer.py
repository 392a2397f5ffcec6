"""An ONNX file as a torch.fx.GraphModule with real convolution, linear, normalization and activation modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import fx

from edgeopt.core.errors import SourceError
from edgeopt.core.model import DTYPES, TensorSpec
from edgeopt.onnx_import.coverage import BUILDERS, Coverage, CoverageError, coverage
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.patterns import drop_dead_code, fuse_composites
from edgeopt.onnx_import.reader import fix_shapes, inline_functions, opset_of, read_onnx, simplify
from edgeopt.onnx_import.tensors import to_torch, torch_dtype


@dataclass(frozen=True)
class Imported:
    """An imported model.

    Attributes:
        module: in eval mode; takes the inputs in order, returns one tensor or a tuple.
        inputs: names, fixed shapes and dtypes as the file declares them.
        output_names: in order.
        coverage: every operator of the simplified graph.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    coverage: tuple[Coverage, ...]


def import_onnx(path: Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Imported:
    """Read an ONNX file as PyTorch.

    Layers keep the names under which the file stores their weights. A symbolic batch becomes 1 unless `input_shapes`
    gives it; every other symbolic dimension must be given.

    Raises:
        UsageError: no such file, or a symbolic dimension is not given.
        SourceError: the file is damaged, no ONNX model, or of an opset outside 7 to 25.
        UnsafeFileError: it reads external data outside its folder.
        UnsupportedOpError: operators that cannot be imported, all in one line; `CoverageError.table` lists them.
    """
    model = inline_functions(read_onnx(path), path)
    shapes = fix_shapes(model, path, input_shapes)
    specs = tuple(_spec(value, shapes[value.name], model.graph) for value in model.graph.input)
    output_names = tuple(o.name for o in model.graph.output)
    opset = opset_of(model, path)
    declared = list(model.graph.input)
    model = simplify(model)
    table = coverage(model.graph.node)
    if any(not row.supported for row in table):
        raise CoverageError(table)
    module = _build(model, opset, declared, specs, output_names)
    return Imported(module, specs, output_names, table)


def _build(
    model: onnx.ModelProto,
    opset: int,
    declared: list[onnx.ValueInfoProto],
    specs: tuple[TensorSpec, ...],
    output_names: tuple[str, ...],
) -> fx.GraphModule:
    g = GraphBuilder()
    values: dict[str, Value] = {}
    for value, spec in zip(declared, specs, strict=True):
        dtype = torch_dtype(value.type.tensor_type.elem_type, f"input {spec.name!r}")
        values[spec.name] = g.placeholder(spec.name, spec.shape, dtype)
    for tensor in model.graph.initializer:
        values[tensor.name] = g.initializer(tensor.name, to_torch(tensor, f"initializer {tensor.name!r}"))
    if model.graph.sparse_initializer:
        raise SourceError("sparse initializers cannot be imported; store them as dense tensors")
    read = frozenset(name for proto in model.graph.node for name in proto.input if name) | frozenset(output_names)
    for proto in model.graph.node:
        node = Node(proto, tuple(_input(values, name, proto) for name in proto.input), opset, read)
        g.place, g.op = node.place, node.op
        result = BUILDERS[node.op](g, node)
        results = result if isinstance(result, tuple) else (result,)
        for name, output in zip(proto.output, results, strict=False):
            if name:
                values[name] = output
    for name in output_names:
        if name not in values:
            raise SourceError(f"no node computes output {name!r}; the file is damaged")
    g.output([values[name] for name in output_names])
    drop_dead_code(g.graph)
    fuse_composites(g.root, g.graph)
    for fx_node in g.graph.nodes:
        fx_node.meta.pop("val", None)
    g.graph.lint()
    module = fx.GraphModule(g.root, g.graph, class_name="ImportedModel")
    return module.eval()


def _input(values: Mapping[str, Value], name: str, proto: onnx.NodeProto) -> Value | None:
    if not name:
        return None
    if name not in values:
        raise SourceError(f"{proto.op_type} {proto.name!r} reads {name!r}, which nothing computes; the file is damaged")
    return values[name]


def _spec(value: onnx.ValueInfoProto, shape: tuple[int, ...], graph: onnx.GraphProto) -> TensorSpec:
    dtype = str(torch_dtype(value.type.tensor_type.elem_type, f"input {value.name!r}")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise SourceError(f"input {value.name!r} is of type {dtype}; export the model with float32 or float16 inputs")
    return TensorSpec(value.name, shape, dtype, _layout(value.name, shape, graph))


def _layout(name: str, shape: tuple[int, ...], graph: onnx.GraphProto) -> str:
    """Return the memory order that the first operator on an image input gives away."""
    if len(shape) != 4:
        return ""
    first = next((n for n in graph.node if name in n.input), None)
    if first is not None and first.op_type == "Transpose":
        order = [list(a.ints) for a in first.attribute if a.name == "perm"]
        return "NHWC" if order == [[0, 3, 1, 2]] else ""
    return "NCHW" if shape[1] in (1, 3, 4) or (first is not None and first.op_type == "Conv") else ""
