"""Convolutions: `conv` and `conv_transpose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from edgeopt.mil.ops.spatial import Ints, effective_kernel, is_symmetric, pad_spatial, window_pads

_CONV: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints = (),
    pad_type: str = "valid",
    pad: Ints = (),
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """1-D to 3-D convolution; `x` [N, C, *D], `weight` [O, C / groups, *K]."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    if pad_type == "valid":
        return _CONV[rank](x, weight, bias, strides, 0, dilations, groups)
    kernel = effective_kernel(weight.shape[2:], dilations)
    pads = window_pads(pad_type, pad, x.shape[2:], kernel, strides)
    if is_symmetric(pads) and all(before >= 0 for before, _ in pads):
        return _CONV[rank](x, weight, bias, strides, [before for before, _ in pads], dilations, groups)
    return _CONV[rank](pad_spatial(x, pads), weight, bias, strides, 0, dilations, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints = (),
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints = (),
    dilations: Ints = (),
    groups: int = 1,
) -> Tensor:
    """Transposed convolution; `x` [N, C, *D], `weight` [C, O / groups, *K].

    The full result has (D - 1) * stride + K elements; `pad` is cut from it. An `output_shape` that asks for more than
    is left is filled up with zeros behind, to which the bias is added as everywhere else.
    """
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    kernel = effective_kernel(weight.shape[2:], dilations)
    full = [(d - 1) * s + k for d, s, k in zip(x.shape[2:], strides, kernel, strict=True)]
    if pad_type == "custom":
        cuts = [(pad[2 * i], pad[2 * i + 1]) for i in range(rank)]
    elif pad_type == "valid":
        cuts = [(0, 0)] * rank
    else:
        wanted = output_shape[2:] if output_shape else [d * s for d, s in zip(x.shape[2:], strides, strict=True)]
        cuts = [((f - w) // 2, (f - w) - (f - w) // 2) for f, w in zip(full, wanted, strict=True)]
    if output_shape:
        starts = [before for before, _ in cuts]
        cuts = [(b, f - b - w) for b, f, w in zip(starts, full, output_shape[2:], strict=True)]
    if is_symmetric(cuts) and all(before >= 0 for before, _ in cuts):
        padding = [before for before, _ in cuts]
        return _TRANSPOSE[rank](x, weight, bias, strides, padding, 0, groups, dilations)
    whole = _TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
    result = pad_spatial(whole, [(-before, -after) for before, after in cuts])
    return result if bias is None else result + bias.view(1, -1, *[1] * rank)


OPS: dict[str, Callable[..., Any]] = {"conv": conv, "conv_transpose": conv_transpose}
