"""Sets weights to zero by their magnitude, singly or so many of every few.

Before: `[0.9, -0.1, 0.4, 0.2]`. After, with 2:4: `[0.9, 0.0, 0.4, 0.0]`. S. Han et al.: "Learning both Weights and
Connections for Efficient Neural Networks", NeurIPS 2015.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any

import torch
from torch.fx import GraphModule

from edgeopt.core.pruning import GradualSparsity, SparsifyOptions
from edgeopt.training.sparsity import pattern_mask, sparse_layers

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
    chosen = sparse_layers(made, options.keep, "sparsify")
    with torch.no_grad():
        if options.pattern is not None:
            keep, every = (int(p) for p in options.pattern.split(":"))
            for layer in chosen.values():
                if layer.weight.shape[1] % every == 0:
                    layer.weight.mul_(pattern_mask(layer.weight.abs(), keep, every))
        else:
            assert options.ratio is not None
            sizes = torch.cat([m.weight.abs().flatten() for m in chosen.values()])
            count = int(options.ratio * len(sizes))
            threshold = sizes.kthvalue(count).values if count else sizes.new_tensor(-1.0)
            for layer in chosen.values():
                layer.weight.mul_(layer.weight.abs() > threshold)
    return made, sparsity_record(made, compressed_bytes(network), options)


def sparsity_record(
    network: GraphModule, compressed_before: int, options: SparsifyOptions | GradualSparsity
) -> dict[str, Any]:
    """Return how many zeros a network's layers hold, and what they gain.

    Args:
        network: that has them.
        compressed_before: `compressed_bytes` before there were any.
        options: that asked for them.
    """
    layers = sparse_layers(network, (), "sparsify")
    total = sum(m.weight.numel() for m in layers.values())
    zeros = sum(int((m.weight == 0).sum()) for m in layers.values())
    dense: dict[str, str] = {}
    if options.pattern is not None:
        every = int(options.pattern.split(":")[1])
        odd = [n for n, m in layers.items() if n not in options.keep and m.weight.shape[1] % every]
        dense = dict.fromkeys(odd, f"its input channels are no multiple of {every}")
    return {
        "zeros": round(zeros / total, 6),
        "weights": total,
        "deflated_bytes": [compressed_before, compressed_bytes(network)],
        "gain": GAIN,
        "left_dense": dense,
    }


def compressed_bytes(network: GraphModule) -> int:
    """Return the deflated size of the weights of all layers that may be sparse."""
    layers = sparse_layers(network, (), "sparsify")
    return sum(len(zlib.compress(m.weight.detach().contiguous().numpy().tobytes(), 6)) for m in layers.values())
