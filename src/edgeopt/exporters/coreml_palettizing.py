"""Puts palettes in the place of a converted program's float weights, after all that coremltools folds into weights."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder
from coremltools.converters.mil.frontend._utils import _construct_constexpr_lut_op
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass

from edgeopt.exporters.coreml_palettes import Palette, grouped_palette_of, palette_of

WEIGHTS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y", "gather": "x"}
BITS_OF_GROUPED = 8
"""Of grouped convolutions, which have few weights beside one large table's gain."""
LARGEST_BIAS = 4096.0  # of a layer before its scale: far from what float16 ends at


def palettizing_pipeline(bits: int, grouped: bool) -> Any:
    """Return coremltools' passes with ours at the end.

    Args:
        bits: 4 or 6.
        grouped: several tables for a weight, and scales; the system must be iOS 18 at least.
    """
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.append_pass("edgeopt::palettize_weights")
    pipeline.set_options("edgeopt::palettize_weights", {"bits": str(bits), "grouped": "yes" if grouped else ""})
    return pipeline


@register_pass(namespace="edgeopt", name="palettize_weights", override=True)
class PalettizeWeights(AbstractGraphPass):  # type: ignore[misc]
    """Before: `conv(x, w, b)`. After: `conv(x, table[indices], b / s) * s`, or without the scale `s`.

    The scale stands behind the layer: systems before iOS 26 read no constant that is looked up first and scaled then.
    """

    bits = "4"
    grouped = ""

    def apply(self, prog: Any) -> None:
        """Change every function of a PyMIL program."""

        @block_context_manager  # type: ignore[untyped-decorator]
        def walk(block: Any) -> None:
            for op in list(block.operations):
                name = WEIGHTS.get(op.op_type)
                weight = op.inputs[name] if name else None
                if weight is not None and weight.op is not None and weight.op.op_type == "const" and weight.rank > 1:
                    self._palettize(block, op, str(name), weight)

        for function in prog.functions.values():
            walk(function)

    def _palettize(self, block: Any, op: Any, name: str, weight: Any) -> None:
        value = torch.from_numpy(np.asarray(weight.val, dtype=np.float32))
        bits = BITS_OF_GROUPED if op.op_type == "conv" and int(op.groups.val) > 1 else int(self.bits)
        if not self.grouped or bits == BITS_OF_GROUPED:
            stored = _constant(palette_of(value, bits), weight)
            block.replace_uses_of_var_after_op(
                anchor_op=weight.op, old_var=weight, new_var=stored, force_replace=True, no_check_var_types=True
            )
            return
        scaled = op.op_type in ("conv", "linear") and len(weight.child_ops) == 1
        axis = {"conv_transpose": 1, "matmul": value.ndim - 1}.get(op.op_type, 0)
        palette = grouped_palette_of(value, int(self.bits), axis, scaled=scaled)
        bias = op.inputs.get("bias")
        if palette.scale is not None and bias is not None:
            bias = bias.val / palette.scale.numpy().reshape(-1)
            if np.abs(bias).max() > LARGEST_BIAS:
                palette, bias = grouped_palette_of(value, int(self.bits), axis, scaled=False), None
        stored = _constant(palette, weight)
        if palette.scale is None:
            block.replace_uses_of_var_after_op(
                anchor_op=weight.op, old_var=weight, new_var=stored, force_replace=True, no_check_var_types=True
            )
            return
        inputs = {**op.inputs, name: stored}
        dtype = weight.val.dtype
        if bias is not None:
            inputs["bias"] = bias.astype(dtype)
        scale = palette.scale.numpy().reshape(-1).astype(dtype)
        if op.op_type == "conv":
            scale = scale.reshape(1, -1, *[1] * (value.ndim - 2))
        plain = getattr(Builder, op.op_type)(**inputs, before_op=op)
        result = Builder.mul(x=plain, y=scale, name=f"{op.name}_scaled", before_op=op)
        block.replace_uses_of_var_after_op(
            anchor_op=op, old_var=op.outputs[0], new_var=result, force_replace=True, no_check_var_types=True
        )
        block.remove_ops([op])


def _constant(palette: Palette, weight: Any) -> Any:
    table = palette.table.numpy().astype(weight.val.dtype)
    return _construct_constexpr_lut_op(
        palette.indices.numpy(), table, name=f"{weight.name}_palettized", before_op=weight.op
    )
