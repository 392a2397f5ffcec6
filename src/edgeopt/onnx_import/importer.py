"""An ONNX file as a torch.fx.GraphModule with real convolution, linear, normalization and activation modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from torch import fx

from edgeopt.core.errors import SourceError
from edgeopt.core.model import DTYPES, TensorSpec
from edgeopt.onnx_import.coverage import Coverage, CoverageError, coverage
from edgeopt.onnx_import.expansion import all_nodes
from edgeopt.onnx_import.graph import RANGE, GraphBuilder, identifier
from edgeopt.onnx_import.node import Quantized, Value
from edgeopt.onnx_import.patterns import drop_dead_code, fuse_composites
from edgeopt.onnx_import.reader import fix_shapes, fix_values, inline_functions, opset_of, read_onnx, simplify
from edgeopt.onnx_import.sizes import refuse_sizes
from edgeopt.onnx_import.tensors import torch_dtype
from edgeopt.onnx_import.walk import Walk


@dataclass(frozen=True)
class Imported:
    """An imported model.

    Attributes:
        module: in eval mode; takes the inputs in order, returns one tensor or a tuple.
        inputs: names, fixed shapes and dtypes as the file declares them.
        output_names: in order.
        coverage: every operator of the simplified graph.
        notes: what differs from the file, and must be known to use the model.
        ranges: minimum and maximum that a quantized file gives for a value, by the path of the module that computes
            it, else by the name of the input or of the torch.fx node; also in the nodes' `meta["range"]`.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    coverage: tuple[Coverage, ...]
    notes: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def import_onnx(
    path: Path,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    input_values: Mapping[str, np.ndarray] | None = None,
) -> Imported:
    """Read an ONNX file as PyTorch.

    Layers keep the names under which the file stores their weights. A symbolic batch becomes 1 unless `input_shapes`
    gives it; every other symbolic dimension must be given. Inputs in `input_values` become constants, so that what
    depends on them alone (a sampling rate that chooses a branch) is settled now.

    A quantized model is imported in float: its weights are the real numbers that its integers stand for, and between
    layers nothing is rounded. The ranges of its activations are kept in `ranges`.

    Raises:
        UsageError: no such file, or a symbolic dimension is not given.
        SourceError: the file is damaged, no ONNX model, or of an opset outside 7 to 25.
        UnsafeFileError: it reads external data outside its folder.
        UnsupportedOpError: operators that cannot be imported, all in one line; `CoverageError.table` lists them.
    """
    model = inline_functions(read_onnx(path), path)
    refuse_sizes(model, path)
    fix_values(model, path, input_values)
    shapes = fix_shapes(model, path, input_shapes)
    specs = tuple(_spec(value, shapes[value.name], model.graph) for value in model.graph.input)
    output_names = tuple(o.name for o in model.graph.output)
    opset = opset_of(model, path)
    declared = list(model.graph.input)
    model = simplify(model)
    table = coverage(all_nodes(model.graph.node))
    if any(not row.supported for row in coverage(model.graph.node)):
        raise CoverageError(table)
    module, notes, ranges = _build(model, opset, declared, specs, output_names, table)
    return Imported(module, specs, output_names, table, notes, ranges)


def _build(
    model: onnx.ModelProto,
    opset: int,
    declared: list[onnx.ValueInfoProto],
    specs: tuple[TensorSpec, ...],
    output_names: tuple[str, ...],
    table: tuple[Coverage, ...],
) -> tuple[fx.GraphModule, tuple[str, ...], dict[str, tuple[float, float]]]:
    g = GraphBuilder()
    nodes = list(all_nodes(model.graph.node))
    bodies = [graph for n in nodes for a in n.attribute for graph in (a.g, *a.graphs)]
    read = {name for proto in nodes for name in proto.input if name} | set(output_names)
    read.update(o.name for graph in bodies for o in graph.output)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for proto in nodes:
        for name in proto.input:
            readers.setdefault(name, []).append(proto)
    walk = Walk(g, opset, frozenset(read), table, readers)
    values: dict[str, Value | Quantized] = {}
    for value, spec in zip(declared, specs, strict=True):
        dtype = torch_dtype(value.type.tensor_type.elem_type, f"input {spec.name!r}")
        values[spec.name] = g.placeholder(spec.name, spec.shape, dtype)
    values.update(walk.initializers(model.graph))
    walk.nodes(model.graph.node, values)
    g.output([walk.output(values, name) for name in output_names])
    drop_dead_code(g.graph)
    fuse_composites(g.root, g.graph)
    g.graph.lint()
    ranges = _ranges(g.graph, {identifier(s.name): s.name for s in specs})
    for fx_node in g.graph.nodes:
        fx_node.meta.pop("val", None)
    module = fx.GraphModule(g.root, g.graph, class_name="ImportedModel").eval()
    return module, tuple(g.notes), ranges


def _ranges(graph: fx.Graph, inputs: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    for node in graph.nodes:
        if RANGE not in node.meta:
            continue
        if node.op == "placeholder":
            found[inputs.get(node.name, node.name)] = node.meta[RANGE]
        elif node.op == "call_module" and calls[str(node.target)] == 1:
            found[str(node.target)] = node.meta[RANGE]
        else:
            found[node.name] = node.meta[RANGE]
    return found


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
