"""Output channels that no input moves become constants.

Training with weight decay leaves channels whose folded weights are a millionth of their neighbours'. Their scale is as
small, and a bias counted in steps of it overflows 32 bits; formats answer by cutting the bias off or by widening the
input's range, which costs every other channel. M. Nagel et al.: "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, describe how unequal the channels of depthwise-separable networks are.
"""

from __future__ import annotations

import torch

from edgeopt.stages.unfold import rows_of, weight_of_rows
from edgeopt.stages.walk import Arrival

STILL = 1 / 16
"""Of a step of the layer's output in eight bits: a channel that varies by less varies no more once it is rounded."""
SMALL = 2.0**-13
"""Of bias or output: the largest product of weight and input; at 2**-15 of a bias, that bias has 2**30 steps."""


def silence_still_channels(arrival: Arrival) -> int:
    """Set the weights of channels that stand still over the samples to zero, and add what they gave to the bias.

    Only convolutions are looked at. Embeddings have no output channels, and linear layers of transformers may write
    what a normalization in float spreads again.

    Before: `y[c] = w[c]·x + b[c]` with `max y[c] - min y[c]` below 1/16 of `(max y - min y) / 255`.
    After: `w[c] = 0`, `b[c]` the mean of `y[c]`.

    Returns:
        How many channels became constants; zero rows that stood there already are not counted.
    """
    layer = arrival.layer
    if layer.kind not in ("convolution", "transposed"):
        return 0
    low = high = total = torch.zeros(0)
    lowest, highest, reach, count = 0.0, 0.0, 0.0, 0
    for i, value in enumerate(arrival.inputs):
        output = arrival.outputs(value)
        flat = output.transpose(0, 1).flatten(1)
        ends = torch.aminmax(flat, dim=1)
        low, high = (ends.min, ends.max) if i == 0 else (torch.minimum(low, ends.min), torch.maximum(high, ends.max))
        total = flat.sum(1) if i == 0 else total + flat.sum(1)
        count += flat.shape[1]
        seen = torch.aminmax(arrival.activation(output))
        lowest, highest = min(lowest, float(seen.min)), max(highest, float(seen.max))
        reach = max(reach, float(value.abs().max()))
    rows = rows_of(layer)
    largest = rows.abs().amax(2).flatten()
    size = torch.full_like(largest, highest - lowest)
    if layer.bias is not None:
        size = torch.maximum(size, layer.bias.abs())
    still = (high - low <= STILL * (highest - lowest) / 255) & (largest * reach <= SMALL * size) & (largest > 0)
    if not bool(still.any()):
        return 0
    mean = total / count
    before = torch.zeros_like(mean) if layer.bias is None else layer.bias
    layer.set_weight(weight_of_rows(layer, rows.masked_fill(still.reshape(rows.shape[:2])[..., None], 0.0)))
    layer.set_bias(torch.where(still, mean, before))
    return int(still.sum())
