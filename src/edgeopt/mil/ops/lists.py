"""Lists of tensors: what `while_loop` bodies collect their results in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeopt.mil.values import torch_dtype_named

TensorList = list[Any]


def make_list(elem_shape: tuple[Any, ...], init_length: int = 1, dtype: str = "fp32") -> TensorList:
    """List of zeros; an element whose shape is not known is empty until written."""
    if all(not isinstance(size, str) for size in elem_shape):
        zero = torch.zeros([int(size) for size in elem_shape], dtype=torch_dtype_named(dtype))
        return [zero] * init_length
    return [None] * init_length


def list_length(ls: TensorList) -> Tensor:
    """Length of the list."""
    return torch.tensor(len(ls), dtype=torch.int32)


def list_write(ls: TensorList, index: int, value: Tensor) -> TensorList:
    """Copy of the list with one element replaced, grown where the index lies behind its end."""
    return [*ls[:index], *[None] * (index - len(ls)), value, *ls[index + 1 :]]


def list_read(ls: TensorList, index: int) -> Tensor:
    """Element of the list.

    Raises:
        IndexError: it was never written.
    """
    element = ls[index]
    if element is None:
        raise IndexError(f"element {index} was never written")
    return torch.as_tensor(element)


def list_gather(ls: TensorList, indices: tuple[int, ...]) -> Tensor:
    """Elements of the list, stacked."""
    return torch.stack([list_read(ls, i) for i in indices])


def list_scatter(ls: TensorList, indices: tuple[int, ...], value: Tensor) -> TensorList:
    """Copy of the list with several elements replaced."""
    for index, element in zip(indices, value, strict=True):
        ls = list_write(ls, index, element)
    return ls


OPS: dict[str, Callable[..., Any]] = {
    "list_gather": list_gather,
    "list_length": list_length,
    "list_read": list_read,
    "list_scatter": list_scatter,
    "list_write": list_write,
    "make_list": make_list,
}
