"""What an operator's parameters are in Python, read from its implementation's annotations."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from edgeopt.mil.values import to_tensor


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, torch.Tensor):
        return tuple(value.reshape(-1).tolist())
    if isinstance(value, tuple):
        return tuple(int(part) for part in value)
    return tuple(int(part) for part in np.asarray(value).reshape(-1))


def _bools(value: Any) -> tuple[bool, ...]:
    return tuple(bool(part) for part in _ints(value))


def _scalar(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        return kind(value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value)

    return convert


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else to_tensor(value)


def same(value: Any) -> Any:
    """Return what it is given."""
    return value


def _labels(value: Any) -> tuple[Any, ...]:
    return tuple(part.item() if isinstance(part, np.generic) else part for part in getattr(value, "ls", value))


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _scalar(bool),
    float: _scalar(float),
    int: _scalar(int),
    str: _scalar(str),
    torch.Tensor: _tensor,
    tuple[bool, ...]: _bools,
    tuple[int, ...]: _ints,
    tuple[torch.Tensor, ...]: same,
    tuple[Any, ...]: _labels,
}


@functools.cache
def converters_of(function: Callable[..., Any]) -> dict[str, Callable[[Any], Any]]:
    """Return what turns each parameter of an implementation into what its annotation says."""
    hints = typing.get_type_hints(function)
    result = {}
    for name in inspect.signature(function).parameters:
        hint = hints.get(name, torch.Tensor)
        choices = [part for part in typing.get_args(hint) if part is not type(None)]
        if type(None) in typing.get_args(hint):
            hint = choices[0]
        result[name] = _CONVERTERS.get(hint, same)
    return result


def call_late(call: Callable[..., Any], late: Mapping[str, Callable[[Any], Any]], **values: Any) -> Any:
    """Call with some values converted first: those a program computes though they are Python values here."""
    return call(**{name: late[name](value) if name in late else value for name, value in values.items()})


def is_static(converter: Callable[[Any], Any]) -> bool:
    """Whether a parameter is a Python value, which a tensor that the program computes must be turned into."""
    return converter not in (_tensor, same)
