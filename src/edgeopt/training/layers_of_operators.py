"""The layers that operators on bare weights came from.

Each function gets an operator's arguments by name and a way to look up the tensors among them. It returns the layer,
the node of its weight, the inputs of the layer's call and what tells it from another layer on the same weight; None
where the operator is no such layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Node

aten = torch.ops.aten
Made = tuple[nn.Module, Node | None, list[Any], tuple[Any, ...]]
Lookup = Callable[[Any], torch.Tensor | None]
Arguments = dict[str, Any]
Lift = Callable[[Lookup, Arguments], Made | None]


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, value.is_floating_point())


def _filled(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    layer.weight = _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)  # type: ignore[assignment]
    return layer


def _usable(tensor: Lookup, weight: Any, bias: Any) -> bool:
    return tensor(weight) is not None and (bias is None or tensor(bias) is not None)


def _convolution(dimensions: int, transposed: bool = False) -> Lift:
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    transposed_kinds: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

    def lift(tensor: Lookup, a: Arguments) -> Made | None:
        if not _usable(tensor, a["weight"], a["bias"]):
            return None
        weight, bias = tensor(a["weight"]), tensor(a["bias"])
        assert weight is not None

        def each(value: Any) -> tuple[int, ...]:
            numbers = list(value) if isinstance(value, (list, tuple)) else [value]
            return tuple(numbers * dimensions if len(numbers) == 1 else numbers)

        groups = int(a["groups"])
        settings: dict[str, Any] = {
            "stride": each(a["stride"]),
            "padding": each(a["padding"]),
            "dilation": each(a["dilation"]),
            "groups": groups,
            "bias": bias is not None,
        }
        if transposed:
            settings["output_padding"] = each(a["output_padding"])
            channels = weight.shape[0], weight.shape[1] * groups
            layer: nn.Module = transposed_kinds[dimensions](*channels, tuple(weight.shape[2:]), **settings)
        else:
            channels = weight.shape[1] * groups, weight.shape[0]
            layer = kinds[dimensions](*channels, tuple(weight.shape[2:]), **settings)
        return _filled(layer, weight, bias), a["weight"], [a["input"]], tuple(settings.items())

    return lift


def _linear(tensor: Lookup, a: Arguments) -> Made | None:
    if not _usable(tensor, a["weight"], a["bias"]):
        return None
    weight, bias = tensor(a["weight"]), tensor(a["bias"])
    assert weight is not None
    if weight.ndim != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(layer, weight, bias), a["weight"], [a["input"]], (bias is not None,)


def _batch_norm(tensor: Lookup, a: Arguments) -> Made | None:
    weight, mean, variance = (tensor(a[k]) for k in ("weight", "running_mean", "running_var"))
    if weight is None or mean is None or variance is None or a["training"]:
        return None
    dimensions = a["input"].meta["val"].ndim
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(dimensions, nn.BatchNorm1d)
    layer = kind(len(weight), eps=a["eps"], momentum=a["momentum"] or 0.1)
    _filled(layer, weight, tensor(a["bias"]))
    layer.running_mean, layer.running_var = mean.detach().clone(), variance.detach().clone()
    return layer, a["weight"], [a["input"]], (a["eps"],)


def _layer_norm(tensor: Lookup, a: Arguments) -> Made | None:
    weight, bias = tensor(a["weight"]), tensor(a["bias"])
    if weight is None:
        return None
    layer = nn.LayerNorm(list(a["normalized_shape"]), eps=a["eps"], bias=bias is not None)
    return _filled(layer, weight, bias), a["weight"], [a["input"]], (a["eps"],)


def _group_norm(tensor: Lookup, a: Arguments) -> Made | None:
    weight, bias = tensor(a["weight"]), tensor(a["bias"])
    if weight is None or bias is None:
        return None
    layer = nn.GroupNorm(a["num_groups"], len(weight), eps=a["eps"])
    return _filled(layer, weight, bias), a["weight"], [a["input"]], (a["num_groups"], a["eps"])


def _embedding(tensor: Lookup, a: Arguments) -> Made | None:
    weight = tensor(a["weight"])
    if weight is None:
        return None
    layer = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight.detach())
    layer.weight = _parameter(weight)
    return layer, a["weight"], [a["indices"]], ()


def _dropout(_: Lookup, a: Arguments) -> Made | None:
    return nn.Dropout(a["p"]), None, [a["input"]], ()


LAYERS: dict[Any, Lift] = {
    aten.conv1d.default: _convolution(1),
    aten.conv2d.default: _convolution(2),
    aten.conv3d.default: _convolution(3),
    aten.conv_transpose1d.default: _convolution(1, transposed=True),
    aten.conv_transpose2d.input: _convolution(2, transposed=True),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.embedding.default: _embedding,
    aten.dropout.default: _dropout,
}
