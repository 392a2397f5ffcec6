"""MIL types against torch's and NumPy's.

Floats are computed as float32 whatever the program declares; `uint16` and `uint32`, which torch hardly supports, are
held as int32; sub-byte integers as int8 or uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

_TORCH: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "fp16": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float32,
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int32,
}

_NUMPY: dict[str, str] = {
    "bool": "bool",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "uint16",
}


def torch_dtype_named(name: str) -> torch.dtype:
    """Return the torch type that holds values of a MIL type.

    Raises:
        ValueError: MIL has no such type.
    """
    if name not in _TORCH:
        raise ValueError(f"data type {name!r} is unknown")
    return _TORCH[name]


def type_name(var: Any) -> str | None:
    """Return the MIL name of a variable's element type; None for lists, dictionaries, strings and states."""
    sym = var.sym_type
    if sym is None or types.is_list(sym) or types.is_dict(sym) or types.is_str(sym) or types.is_state(sym):
        return None
    name = types.builtin_to_string(sym.get_primitive() if types.is_tensor(sym) else sym)
    return name if name in _TORCH else None


def numpy_name(name: str) -> str:
    """Return NumPy's name of a MIL type that can cross the program's border."""
    return _NUMPY[name]


def to_tensor(value: Any) -> torch.Tensor:
    """Return a constant of a PyMIL program as a tensor, floats as float32.

    Raises:
        TypeError: the constant is no number.
    """
    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a constant of type {array.dtype} is no tensor")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int32)
    elif array.dtype.metadata is not None:  # coremltools marks sub-byte integers this way
        array = array.astype(array.dtype.str)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy(order="C")
    return torch.from_numpy(array)
