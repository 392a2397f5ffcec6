"""Exact rewrites of a quantized ONNX graph, so that ONNX Runtime fuses it into integer kernels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


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


def store_convolution_weights_in_int8(model: onnx.ModelProto) -> int:
    """Store float convolution weights as int8, symmetric per output channel; returns how many.

    Before: `Conv(x, W)`; after: `Conv(x, Cast(int8 W) * scale)`. ONNX Runtime has no dynamic int8 convolution with
    per-channel scales, so these compute in float and only the file is smaller. Cast and Mul are folded when a session
    is made; a DequantizeLinear there is not, and was measured to run at a third of the speed.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    decoders: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}
    stored = 0
    for conv in graph.node:
        if conv.op_type not in ("Conv", "ConvTranspose") or conv.input[1] not in constants:
            continue
        name = conv.input[1]
        weight = numpy_helper.to_array(constants[name])
        if weight.dtype != np.float32:
            continue
        axis = 0 if conv.op_type == "Conv" else 1
        if name not in decoders:
            other_axes = tuple(a for a in range(weight.ndim) if a != axis)
            scale = np.maximum(np.abs(weight).max(axis=other_axes), np.finfo(np.float32).tiny * 127) / 127
            shape = [-1 if a == axis else 1 for a in range(weight.ndim)]
            integers = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
            scales = scale.reshape(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
            cast = onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT)
            scaled = onnx.helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [f"{name}_scaled"])
            decoders[name] = (cast, scaled)
        conv.input[1] = decoders[name][1].output[0]
        stored += 1
    for cast, scaled in decoders.values():
        graph.node.insert(0, scaled)
        graph.node.insert(0, cast)
    remove_unused_constants(model)
    return stored


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
