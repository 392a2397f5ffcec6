"""Float operators of a quantized graph that read integers and floats at once."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize/dequantize operators
from torch.fx import GraphModule, Node

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default
COMBINING = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.cat.default)


def read_floats_only(module: GraphModule) -> int:
    """Let a float operator of several inputs read all of them as floats; returns how many inputs that changed.

    In front of a layer that stays in float, a sum or concatenation may meet tensors that others read as integers. What
    XNNPACK's converter makes of such a mixture fails when it is executed ("Propagating input shapes failed"). What
    nothing else reads as integers keeps them: the layer that makes it is computed on integers only if its result is.

    Before: `add(dequantize(quantize(x)), y)`. After: `add(x, y)`, where the sum is not quantized.
    """
    changed = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in COMBINING:
            continue
        rounded = [n for n in node.all_input_nodes if _is_read_elsewhere(n)]
        integers = [n for n in node.all_input_nodes if n.target is DEQUANTIZE]
        if len(integers) == len(node.all_input_nodes) or any(user.target is QUANTIZE for user in node.users):
            continue
        for value in rounded:
            source = _source(value)
            assert source is not None
            node.replace_input_with(value, source)
            changed += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return changed


def _is_read_elsewhere(dequantized: Node) -> bool:
    """Whether others too read the integers that a value was."""
    if dequantized.target is not DEQUANTIZE or _source(dequantized) is None:
        return False
    integers = dequantized.args[0]
    assert isinstance(integers, Node)
    return len(integers.users) > 1 or len(dequantized.users) > 1


def _source(dequantized: Node) -> Node | None:
    """Return the float that a dequantized value was, None where it is a stored integer."""
    integers = dequantized.args[0]
    if not isinstance(integers, Node) or integers.target is not QUANTIZE:
        return None
    source = integers.args[0]
    return source if isinstance(source, Node) else None
