"""Sets weights to zero by their magnitude, singly or so many of every few.

Before: `[0.9, -0.1, 0.4, 0.2]`. After, with 2:4: `[0.9, 0.0, 0.4, 0.0]`. S. Han et al.: "Learning both Weights and
Connections for Efficient Neural Networks", NeurIPS 2015.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.pruning import SparsifyOptions

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
GAIN = (
    "files keep their size and runtimes their speed: ONNX, LiteRT, Core ML and ExecuTorch files made here store zeros "
    "like any weight; what is gained is how far the file compresses (deflate) on its way to the device"
)


def sparsify(network: GraphModule, options: SparsifyOptions) -> tuple[GraphModule, dict[str, Any]]:
    """Return a copy with zeros, and a record that says what they gain.

    Raises:
        UsageError: an unknown layer is to be kept.
    """
    made = copy.deepcopy(network)
    layers = {n: m for n, m in made.named_modules() if isinstance(m, KINDS)}
    for name in options.keep:
        if name not in layers:
            raise UsageError(f"sparsify: no layer {name!r}{did_you_mean(name, layers)}")
    before = _compressed(layers)
    chosen = {n: m for n, m in layers.items() if n not in options.keep}
    dense: list[str] = []
    with torch.no_grad():
        if options.pattern is not None:
            keep, every = (int(p) for p in options.pattern.split(":"))
            for name, layer in chosen.items():
                if layer.weight.shape[1] % every:
                    dense.append(name)
                else:
                    layer.weight.mul_(_pattern(layer.weight, keep, every))
        else:
            assert options.ratio is not None
            sizes = torch.cat([m.weight.abs().flatten() for m in chosen.values()])
            count = int(options.ratio * len(sizes))
            threshold = sizes.kthvalue(count).values if count else sizes.new_tensor(-1.0)
            for layer in chosen.values():
                layer.weight.mul_(layer.weight.abs() > threshold)
    total = sum(m.weight.numel() for m in layers.values())
    zeros = sum(int((m.weight == 0).sum()) for m in layers.values())
    return made, {
        "zeros": round(zeros / total, 6),
        "weights": total,
        "deflated_bytes": [before, _compressed(layers)],
        "gain": GAIN,
        "left_dense": dict.fromkeys(dense, f"its input channels are no multiple of {every}") if dense else {},
    }


def _pattern(weight: torch.Tensor, keep: int, every: int) -> torch.Tensor:
    """Return ones where a weight stays, of shape [out, in, ...]; groups run along the input channels."""
    last = weight.abs().movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, every)
    order = groups.argsort(stable=True, dim=-1, descending=True)
    mask = torch.zeros_like(groups).scatter_(-1, order[..., :keep], 1.0)
    return mask.reshape(last.shape).movedim(-1, 1)


def _compressed(layers: dict[str, Any]) -> int:
    return sum(len(zlib.compress(m.weight.detach().contiguous().numpy().tobytes(), 6)) for m in layers.values())
