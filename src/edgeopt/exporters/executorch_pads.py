"""Zero pads of a quantized graph, which the converter would compute in float, as integers or as the layer's own."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize/dequantize operators
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
PADS = (aten.pad.default, aten.constant_pad_nd.default)
SIDES = 4  # left, right, top, bottom


def absorb_pads(module: GraphModule) -> int:
    """Return how many zero pads in front of 2-D convolutions no longer need floats; outputs are the same.

    A pad keeps its input's scale, and zero is an integer of it. So an even pad becomes the convolution's own padding,
    and around an uneven one the second pair of quantize and dequantize goes: the converter then pads integers. It has
    configurations for both, but for `dequantize → pad → convolution` only.

    Before: `dq → pad → q → dq → conv`. After: `dq → conv(padding)`, or `dq → pad → conv`.
    """
    count = 0
    for pad in list(module.graph.nodes):
        if pad.op != "call_function" or pad.target not in PADS:
            continue
        amounts = _zero_pad(pad)
        pairs = _pairs_behind(pad)
        layers = [(pair, conv) for pair in pairs for conv in pair.users]
        if amounts is None or not pairs or not all(_takes(conv, pair) for pair, conv in layers):
            continue
        left, right, top, bottom = amounts
        even = left == right and top == bottom
        if not even and len(layers) > 1:
            continue
        for pair, conv in layers:
            conv.replace_input_with(pair, pad.args[0] if even else pad)
            if even:
                above, beside = _padding(conv)
                conv.args = (*_filled(conv)[:4], [above + top, beside + left], *_filled(conv)[5:])
        count += 1
    module.graph.eliminate_dead_code()
    module.recompile()
    return count


def _zero_pad(pad: Node) -> list[int] | None:
    """Return the amounts of a pad that adds zeros to the last two dimensions only."""
    mode = pad.args[2] if pad.target is aten.pad.default and len(pad.args) > 2 else "constant"
    position = 3 if pad.target is aten.pad.default else 2
    value = pad.args[position] if len(pad.args) > position else 0
    amounts = pad.args[1]
    if mode != "constant" or value not in (None, 0, 0.0) or not isinstance(amounts, list | tuple):
        return None
    sides = [a for a in amounts if isinstance(a, int) and a >= 0]
    return sides if len(sides) == len(amounts) == SIDES else None


def _pairs_behind(pad: Node) -> list[Node]:
    """Return the dequantizes behind a pad where they undo a quantize of the scale that the pad's input has."""
    source = pad.args[0]
    if not isinstance(source, Node) or source.target is not quantized.dequantize_per_tensor.default:
        return []
    found = []
    for stored in pad.users:
        if stored.target is not quantized.quantize_per_tensor.default or stored.args[1:] != source.args[1:]:
            return []
        found += list(stored.users)
    dequantize = quantized.dequantize_per_tensor.default
    return found if all(n.target is dequantize and n.args[1:] == source.args[1:] for n in found) else []


def _takes(node: Node, source: Node) -> bool:
    """Whether a node is a convolution of `source`, with numbers for its padding."""
    return node.target is aten.conv2d.default and node.args[0] is source


def _padding(conv: Node) -> tuple[int, int]:
    """Return a convolution's own padding above and beside."""
    padding = _filled(conv)[4]
    assert isinstance(padding, list | tuple)
    first, last = padding[0], padding[-1]
    assert isinstance(first, int) and isinstance(last, int)
    return first, last


def _filled(conv: Node) -> tuple[Argument, ...]:
    """Return a convolution's arguments, the defaults too."""
    defaults: tuple[Argument, ...] = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    return (*conv.args, *defaults[len(conv.args) :])
