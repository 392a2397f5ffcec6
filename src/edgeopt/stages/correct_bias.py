"""The mean error that quantization adds to each output channel, taken out of the bias.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling: "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.2; empirically, from calibration samples. The mean is taken behind the activation
function: noise of mean zero comes out of a ReLU with a positive mean, and what sums or averages many channels then
sees it.

A linear layer's channels are corrected by the median error instead. In transformers a few tokens carry values tens of
times larger than the others and most of the error's sum; a bias that took their mean out would shift every other token,
which the layer normalization behind it makes the larger part.
"""

from __future__ import annotations

import torch

from edgeopt.stages.walk import Arrival

MAX_POSITIONS = 20_000
STEPS = 3
SMALLEST_SLOPE = 0.02


def correct_bias(arrival: Arrival) -> None:
    """Shift the bias so that each channel's mean behind the activation (a linear layer's median error) is the float's.

    Outputs come from the layers before as quantized, so their mean errors are taken out as well. Embeddings have no
    bias and are left alone. A channel that the activation nearly always cuts off is matched before it. Memory is that
    of 20,000 positions of the output.

    Before: `E[f(y_float)] - E[f(y)] = d`. After: `b + s` with `E[f(y + s)] = E[f(y_float)]`.
    """
    layer = arrival.layer
    if layer.kind == "embedding":
        return
    limit = max(1, MAX_POSITIONS // len(arrival.inputs))
    now, target = [], []
    for i, (value, in_float) in enumerate(zip(arrival.inputs, arrival.float_inputs, strict=True)):
        now.append(_positions(arrival.outputs(value), layer.kind, limit, i))
        target.append(_positions(arrival.float_outputs(in_float), layer.kind, limit, i))
    found, wanted = torch.cat(now, 1), torch.cat(target, 1)
    shift = (wanted - found).median(1).values if layer.kind == "linear" else shift_of(found, wanted, arrival)
    layer.set_bias(shift if layer.bias is None else layer.bias + shift)


def shift_of(now: torch.Tensor, target: torch.Tensor, arrival: Arrival) -> torch.Tensor:
    """Return for each channel what added to `now` gives `target`'s mean behind the activation.

    Args:
        now, target: `[channels, positions]` before the activation.
        arrival: gives the activation.
    """
    plain = (target - now).mean(1)
    wanted = arrival.activation(target).mean(1)
    step = 0.05 * now.std(1, keepdim=True).clamp(min=1e-6)
    bound = 4 * (target - now).std(1) + plain.abs()
    shift = torch.zeros_like(plain)
    slope = torch.ones_like(plain)
    for _ in range(STEPS):
        at = now + shift[:, None]
        slope = ((arrival.activation(at + step) - arrival.activation(at - step)) / (2 * step)).mean(1)
        error = wanted - arrival.activation(at).mean(1)
        shift = (shift + error / slope.clamp(min=SMALLEST_SLOPE)).clamp(-bound, bound)
    return torch.where(slope < SMALLEST_SLOPE, plain, shift)


def _positions(output: torch.Tensor, kind: str, limit: int, index: int) -> torch.Tensor:
    axis = output.ndim - 1 if kind == "linear" else 1
    flat = output.transpose(0, axis).flatten(1)
    if flat.shape[1] <= limit:
        return flat
    chosen = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(index))[:limit]
    return flat[:, chosen]
