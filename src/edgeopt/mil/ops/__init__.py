"""Every MIL operator that has an implementation here, by name.

An implementation is a plain function with MIL's own parameter names on torch tensors. Its annotations say what a
parameter is: `Tensor` arrives as a tensor, `int`, `float`, `bool`, `str` and tuples of them as Python values, which are
converted once where the program has a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeopt.mil.ops import (
    activation,
    classify,
    conv,
    create,
    detection,
    elementwise,
    gather_scatter,
    linear,
    lists,
    norm,
    pool,
    quantize,
    random,
    recurrent,
    reduction,
    resize,
    shape,
    state,
)

OPS: dict[str, Callable[..., Any]] = {
    **activation.OPS,
    **classify.OPS,
    **conv.OPS,
    **create.OPS,
    **detection.OPS,
    **elementwise.OPS,
    **gather_scatter.OPS,
    **linear.OPS,
    **lists.OPS,
    **norm.OPS,
    **pool.OPS,
    **quantize.OPS,
    **random.OPS,
    **recurrent.OPS,
    **reduction.OPS,
    **resize.OPS,
    **shape.OPS,
    **state.OPS,
}

# Parameters that change no value here: index checks are always made, results are always sorted, integer widths follow
# from the declared result type, lists always grow.
IGNORED = frozenset({"dynamic_length", "output_dtype", "output_indices_dtype", "sort", "validate_indices"})

# The executor runs these itself: they own blocks.
CONTROL_FLOW = frozenset({"cond", "while_loop"})

# These are decoded when a program is loaded.
CONSTANTS = frozenset(
    {
        "const",
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_cast",
        "constexpr_lut_to_dense",
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    }
)
