"""Exact rewrites of a quantized ONNX graph, so that ONNX Runtime fuses it into integer kernels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

LARGEST_POOLING_RATIO = 256.0


def shift_activations_to_uint8(model: onnx.ModelProto) -> int:
    """Store int8 activations as uint8 with the zero point 128 higher; returns how many Q/DQ nodes changed.

    Before: `QuantizeLinear(x, s, int8 z)`; after: `QuantizeLinear(x, s, uint8 z + 128)`. Weights stay int8.
    ONNX Runtime's x86 kernels fuse more of the unsigned-by-signed form. The real values are the same.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    shifted: dict[str, str] = {}
    changed = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[0] in constants:
            continue
        if len(node.input) < 3 or node.input[2] not in constants:
            continue
        zero_point = constants[node.input[2]]
        if zero_point.data_type != onnx.TensorProto.INT8:
            continue
        if zero_point.name not in shifted:
            values = numpy_helper.to_array(zero_point).astype(np.int16) + 128
            name = f"{zero_point.name}_uint8"
            graph.initializer.append(numpy_helper.from_array(values.astype(np.uint8), name))
            shifted[zero_point.name] = name
        node.input[2] = shifted[zero_point.name]
        for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(attribute)
        changed += 1
    for info in [v for v in graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.INT8]:
        graph.value_info.remove(info)
    remove_unused_constants(model)
    return changed


def fold_pads(model: onnx.ModelProto) -> int:
    """Move a zero `Pad` before a convolution into its `pads`; returns how many were moved.

    Before: `x → Pad(0) → [Q → DQ →] Conv(pads=0)`; after: `x → [Q → DQ →] Conv(pads)`. Requires that nothing else
    reads the padded tensor. A zero is exactly representable in every affine quantization, so the result is equal.
    """
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    removed: list[onnx.NodeProto] = []
    for conv in [n for n in graph.node if n.op_type == "Conv"]:
        chain: list[onnx.NodeProto] = []
        source = producers.get(conv.input[0])
        while source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
            chain.append(source)
            source = producers.get(source.input[0])
        if source is None or source.op_type != "Pad":
            continue
        links = [*(n.output[0] for n in chain), source.output[0]]
        if any(len(readers.get(name, [])) != 1 or name in outputs for name in links):
            continue
        amounts = _spatial_zero_pads(source, constants)
        if amounts is None or not _add_pads(conv, amounts):
            continue
        (chain[-1] if chain else conv).input[0] = source.input[0]
        removed.append(source)
    for node in removed:
        graph.node.remove(node)
    if removed:
        remove_unused_constants(model)
        del graph.value_info[:]
    return len(removed)


def merge_repeated_quantization(model: onnx.ModelProto) -> int:
    """Drop a Q/DQ pair that repeats the one right before it; returns how many pairs went.

    Before: `q → dq(s, z) → q(s, z) → dq(s, z)`; after: `q → dq(s, z)`.
    """
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    outputs = {o.name for o in graph.output}
    merged = 0
    for second in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
        requantize = producers.get(second.input[0])
        if requantize is None or requantize.op_type != "QuantizeLinear" or second.output[0] in outputs:
            continue
        first = producers.get(requantize.input[0])
        if first is None or first.op_type != "DequantizeLinear" or first.input[0] in constants:
            continue
        if not all(_same_constant(constants, first.input[i], requantize.input[i]) for i in (1, 2)):
            continue
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == second.output[0]:
                    node.input[position] = first.output[0]
        merged += 1
    remove_dead_nodes(model)
    return merged


def pool_means(model: onnx.ModelProto) -> int:
    """Say a mean over all pixels as global pooling, which has an integer kernel; returns how many.

    Before: `ReduceMean(x, axes=[2, 3])`; after: `GlobalAveragePool(x)`. Where the mean drops the axes: before
    `ReduceMean(x) → Q`; after `GlobalAveragePool(x) → Q → DQ → Flatten → Q`, all of one scale, so that the kernel finds
    integers on both sides. A mean whose scales lie too far apart for the kernel, which then fails, is left as it is.
    """
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
    changed = 0
    for node in [n for n in graph.node if n.op_type == "ReduceMean" and len(n.input) > 1]:
        source, out = node.input[0], node.output[0]
        axes = sorted(int(a) for a in constants.get(node.input[1], np.zeros(0)))
        if ranks.get(source) != 4 or axes not in ([2, 3], [-2, -1]) or not _pools_in_integers(graph, constants, node):
            continue
        if next((a.i for a in node.attribute if a.name == "keepdims"), 1):
            parts = [onnx.helper.make_node("GlobalAveragePool", [source], [out], name=node.name)]
        else:
            readers = [n for n in graph.node if out in n.input]
            if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
                continue
            scale = list(readers[0].input[1:])
            parts = [
                onnx.helper.make_node("GlobalAveragePool", [source], [f"{out}_pooled"], name=node.name),
                onnx.helper.make_node("QuantizeLinear", [f"{out}_pooled", *scale], [f"{out}_q"], name=f"{out}_q"),
                onnx.helper.make_node("DequantizeLinear", [f"{out}_q", *scale], [f"{out}_dq"], name=f"{out}_dq"),
                onnx.helper.make_node("Flatten", [f"{out}_dq"], [out], name=f"{out}_flat", axis=1),
            ]
        position = list(graph.node).index(node)
        graph.node.remove(node)
        for part in reversed(parts):
            graph.node.insert(position, part)
        changed += 1
    remove_unused_constants(model)
    return changed


def sort_nodes(model: onnx.ModelProto) -> None:
    """Order nodes so that each stands after those it reads, keeping their order otherwise."""
    graph = model.graph
    waiting = list(graph.node)
    made_here = {output for node in waiting for output in node.output}
    ready: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in made_here for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError("the graph has a cycle")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def remove_dead_nodes(model: onnx.ModelProto) -> None:
    """Remove nodes whose outputs nobody reads."""
    graph = model.graph
    while True:
        used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
        dead = [n for n in graph.node if not any(output in used for output in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    remove_unused_constants(model)


def remove_unused_constants(model: onnx.ModelProto) -> None:
    """Remove initializers that nobody reads."""
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for constant in [i for i in model.graph.initializer if i.name not in used]:
        model.graph.initializer.remove(constant)


def strip_local_paths(model: onnx.ModelProto) -> None:
    """Remove the metadata in which the exporter records the paths and sources of the machine it ran on."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
    graphs = [model.graph.node, *(f.node for f in model.functions)]
    for nodes in graphs:
        for node in nodes:
            del node.metadata_props[:]
            node.doc_string = ""
    values = (model.graph.value_info, model.graph.input, model.graph.output)
    for value in (v for group in values for v in group):
        del value.metadata_props[:]
        value.doc_string = ""
    for constant in model.graph.initializer:
        del constant.metadata_props[:]
        constant.doc_string = ""


def _pools_in_integers(graph: onnx.GraphProto, constants: dict[str, np.ndarray], mean: onnx.NodeProto) -> bool:
    """Tell whether ONNX Runtime's kernel takes the ratio of a mean's input scale to its output scale."""
    source = next((n for n in graph.node if mean.input[0] in n.output and n.op_type == "DequantizeLinear"), None)
    reader = next((n for n in graph.node if mean.output[0] in n.input and n.op_type == "QuantizeLinear"), None)
    if source is None or reader is None or not {source.input[1], reader.input[1]} <= set(constants):
        return True  # then no integer kernel is chosen
    return bool(constants[source.input[1]] / constants[reader.input[1]] < LARGEST_POOLING_RATIO)


def _same_constant(constants: dict[str, np.ndarray], a: str, b: str) -> bool:
    return a == b or (a in constants and b in constants and np.array_equal(constants[a], constants[b]))


def _spatial_zero_pads(pad: onnx.NodeProto, constants: dict[str, np.ndarray]) -> list[int] | None:
    """Return the pads of the spatial axes, begins then ends, or None if the pad is of another kind."""
    mode = next((a.s.decode() for a in pad.attribute if a.name == "mode"), "constant")
    if mode != "constant" or len(pad.input) < 2 or pad.input[1] not in constants:
        return None
    if len(pad.input) > 2 and pad.input[2] and np.any(constants.get(pad.input[2], np.ones(1)) != 0):
        return None
    if len(pad.input) > 3 and pad.input[3]:
        return None
    amounts = [int(v) for v in constants[pad.input[1]]]
    rank = len(amounts) // 2
    begins, ends = amounts[:rank], amounts[rank:]
    if any(begins[:2]) or any(ends[:2]) or min(amounts) < 0:
        return None
    return begins[2:] + ends[2:]


def _add_pads(conv: onnx.NodeProto, amounts: list[int]) -> bool:
    by_name = {a.name: a for a in conv.attribute}
    if "auto_pad" in by_name and by_name["auto_pad"].s not in (b"", b"NOTSET"):
        return False
    present = list(by_name["pads"].ints) if "pads" in by_name else [0] * len(amounts)
    total = [a + b for a, b in zip(present, amounts, strict=True)]
    if "pads" in by_name:
        conv.attribute.remove(by_name["pads"])
    conv.attribute.append(onnx.helper.make_attribute("pads", total))
    return True
