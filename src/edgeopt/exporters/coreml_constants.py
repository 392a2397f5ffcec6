"""Integer weights on their way through torch.export into Core ML: an operator of ours that becomes a `constexpr_*`.

coremltools' own way from a quantized torch graph knows one scale per channel only, and stores 4 bits by chance: where
all of a layer's integers happen to be small.
"""

from __future__ import annotations

from typing import Any

import torch
from coremltools.converters.mil import register_torch_op
from coremltools.converters.mil.frontend._utils import _construct_constexpr_dequant_op
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import types
from torch import Tensor
from torch.fx import GraphModule

from edgeopt.exporters.coreml_executorch_weights import Integers, LayerWeight, add_constant

_LIBRARY = torch.library.Library("edgeopt_coreml", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("scaled(Tensor values, Tensor scale, int bits) -> Tensor")  # type: ignore[no-untyped-call]


def _spread(value: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each entry over its block until the tensor has `shape`."""
    for axis, size in enumerate(shape):
        value = value.repeat_interleave(size // value.shape[axis], axis)
    return value


@torch.library.impl(_LIBRARY, "scaled", "CPU")
def scaled(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return `values * scale`, each scale repeated over its block; `bits` is how wide the values are stored."""
    del bits
    return values.to(scale.dtype) * _spread(scale, values.shape)


@torch.library.impl(_LIBRARY, "scaled", "Meta")
def _scaled_shape(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    del bits
    return torch.empty_like(values, dtype=scale.dtype)


@register_torch_op(torch_alias=["edgeopt_coreml::scaled", "edgeopt_coreml.scaled"])  # type: ignore[untyped-decorator]
def edgeopt_coreml_scaled(context: Any, node: Any) -> None:
    """Build `constexpr_affine_dequantize`, or from iOS 18 on `constexpr_blockwise_shift_scale`."""
    values, scale, bits = (var.val for var in _get_inputs(context, node))
    stored = types.nptype_from_builtin(types.string_to_builtin(f"int{bits}"))
    axis = next((i for i, size in enumerate(scale.shape) if size > 1), 0)
    context.add(
        _construct_constexpr_dequant_op(values.astype(stored), None, scale, axis=axis, name=node.name), node.name
    )


def store_integers(module: GraphModule, weight: LayerWeight, integers: Integers) -> None:
    """Let a weight's layers read its integers and scales instead."""
    before = weight.layers[0]
    values = add_constant(module, before, integers.values, "integers")
    scale = add_constant(module, before, integers.scale, "scales")
    with module.graph.inserting_before(before):
        made = module.graph.call_function(torch.ops.edgeopt_coreml.scaled.default, (values, scale, integers.bits))
    for layer in weight.layers:
        layer.replace_input_with(weight.node, made)
    if not weight.node.users:
        module.graph.erase_node(weight.node)
