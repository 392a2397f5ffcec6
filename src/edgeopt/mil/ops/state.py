"""State: tensors that live from one call to the next, such as a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class StateCell:
    """One state tensor; holds what was written last.

    `half` says that it is stored in half precision, so that what is written is rounded whatever the arithmetic.
    """

    value: Tensor
    half: bool = False


# The parameter names `input` and `state` are MIL's; their values are cells, not tensors.
def read_state(input: Any) -> Tensor:
    """Return the state's present value."""
    value: Tensor = input.value
    return value


def coreml_update_state(state: Any, value: Tensor) -> Tensor:
    """Write the state and return what was written."""
    state.value = value.half().float() if state.half else value
    written: Tensor = state.value
    return written


OPS: dict[str, Callable[..., Any]] = {"coreml_update_state": coreml_update_state, "read_state": read_state}
