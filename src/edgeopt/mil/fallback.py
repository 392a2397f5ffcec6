"""coremltools' own evaluation of single operators: the second opinion, and the way out for what is not written here.

Its `value_inference` folds constants during conversion; run on a copy of an operator whose inputs hold concrete values
it evaluates the operator with NumPy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil.operation import Operation
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from numpy.typing import NDArray

from edgeopt.core.errors import UnsupportedOpError
from edgeopt.mil.values import to_tensor


class _Holder:
    """Stands in for a variable and holds a value."""

    def __init__(self, var: Any, value: NDArray[Any]) -> None:
        self.val = self.sym_val = value
        self.shape, self.rank = value.shape, value.ndim
        self.dtype, self.sym_type, self.name = var.dtype, var.sym_type, var.name


def has_value_inference(kind: str) -> bool:
    """Whether some version of the operator can be evaluated by coremltools."""
    versions = SSAOpRegistry.core_ops.get(kind, {})
    return any(cls.value_inference is not Operation.value_inference for cls in versions.values())


def evaluate(op: Any, values: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Evaluate a PyMIL operator on arrays by coremltools.

    Args:
        op: the operator; it is left as it is.
        values: for each parameter that is not a constant of the program: an array, or a tuple of arrays.

    Raises:
        UnsupportedOpError: coremltools declines.
    """
    stand_in = copy.copy(op)
    stand_in._input_vars = dict(op._input_vars)
    for name, value in values.items():
        var = op.inputs[name]
        holder: Any
        if isinstance(value, tuple):
            holder = tuple(_Holder(v, np.asarray(a)) for v, a in zip(var, value, strict=True))
        else:
            holder = _Holder(var, np.asarray(value))
        stand_in._input_vars[name] = holder
        setattr(stand_in, name, holder)
    try:
        result = stand_in.value_inference()
    except (NotImplementedError, AttributeError) as error:
        raise UnsupportedOpError(op.op_type, op.name, f"coremltools does not evaluate it ({error})") from error
    if result is None:
        raise UnsupportedOpError(op.op_type, op.name, "coremltools does not evaluate it")
    parts = result if isinstance(result, tuple | list) else (result,)
    return tuple(to_tensor(part) for part in parts)
