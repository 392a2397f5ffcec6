"""ONNX tensors and element types in PyTorch's terms."""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from edgeopt.core.errors import SourceError

TORCH_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}

MAX_ELEMENTS = 2**31
"""No tensor of a model for a device has more elements; a file that asks for one is broken or hostile."""


def torch_dtype(element_type: int, place: str) -> torch.dtype:
    """Return the PyTorch dtype of an ONNX element type.

    Raises:
        SourceError: PyTorch computes in no such type (strings, float8, int4, complex, wide unsigned).
    """
    if element_type not in TORCH_DTYPES:
        known = element_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(element_type) if known else str(element_type)
        raise SourceError(f"{place} has element type {name}, which cannot be imported; convert it to float or int64")
    return TORCH_DTYPES[element_type]


def check_elements(shape: tuple[int, ...], place: str) -> None:
    """Refuse a shape that no device could hold.

    Raises:
        SourceError: a negative dimension or more than `MAX_ELEMENTS` elements.
    """
    if any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise SourceError(f"{place} has shape {list(shape)}: not a size that a model can have; the file is damaged")


def to_torch(proto: onnx.TensorProto, place: str) -> torch.Tensor:
    """Return the values of `proto`, which must hold its data itself.

    Raises:
        SourceError: its data do not fit its shape, or its type cannot be imported.
    """
    dtype = torch_dtype(proto.data_type, place)
    shape = tuple(proto.dims)
    check_elements(shape, place)
    count = math.prod(shape)
    if proto.HasField("raw_data"):
        stored = len(proto.raw_data) // dtype.itemsize
        if len(proto.raw_data) != count * dtype.itemsize:
            raise SourceError(f"{place} declares shape {list(shape)} but holds {stored} elements; the file is damaged")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if dtype is torch.bool:
            return torch.frombuffer(bytearray(proto.raw_data), dtype=torch.uint8).ne(0).reshape(shape)
        return torch.frombuffer(bytearray(proto.raw_data), dtype=dtype).reshape(shape)
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{place} cannot be decoded: {error}; the file is damaged") from error
    if dtype is torch.bfloat16:
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(dtype)
    return torch.from_numpy(np.array(array))
