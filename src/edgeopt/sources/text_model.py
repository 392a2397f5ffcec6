"""What exporters see of a transformers model: tensors in, tensors out, padding masked by a finite constant."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

MASKED = -1e4
"""Added to the scores of padding: enough for softmax to give zero, and half precision can hold it."""
SMALLEST = 1e-9


class TextModel(torch.nn.Module):
    """A text model on tensors in a fixed order, e.g. `input_ids` and `attention_mask`, each `[batch, length]`.

    Before: a dataclass of outputs; transformers makes a mask of the lowest float or of minus infinity, which converters
    and half precision turn into NaN. After: one tensor or a tuple; a mask `[batch, 1, 1, length]` of 0 and -1e4.

    Attributes:
        additive: whether the model is given that mask, else the 0/1 mask it makes its own from.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        names: tuple[str, ...],
        outputs: int,
        pooling: str | None,
        normalize: bool,
        additive: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs
        self.pooling = pooling
        self.normalize = normalize
        self.additive = additive

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Return logits, `(start, end)` logits, hidden states, or sentence vectors `[batch, width]`."""
        inputs = dict(zip(self.names, tensors, strict=True))
        mask = inputs["attention_mask"]
        if self.additive:
            inputs["attention_mask"] = ((1.0 - mask.to(torch.float32)) * MASKED)[:, None, None, :]
        results = self.model(**inputs, return_dict=False)
        if self.pooling is not None:
            sentence = pool(results[0], mask, self.pooling)
            return F.normalize(sentence, dim=-1) if self.normalize else sentence
        return results[0] if self.outputs == 1 else tuple(results[: self.outputs])


class ImageModel(torch.nn.Module):
    """An image classifier: `[batch, channels, height, width]` to logits `[batch, classes]`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Return the logits alone."""
        return self.model(pixel_values=pixel_values, return_dict=False)[0]


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Return one vector per text of hidden states `[batch, length, width]`: first token, mean, or maximum."""
    if how == "cls":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype)[:, :, None]
    if how == "max":
        return (hidden + (1.0 - weights) * MASKED).amax(1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=SMALLEST)


def fits_additive_mask(model: TextModel, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Tell whether the model computes the same with the additive mask as with its own; `inputs` hold some padding."""
    mask = inputs[model.names.index("attention_mask")].bool()
    with torch.no_grad():
        try:
            additive = model(*inputs)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        model.additive = False
        own = model(*inputs)
        model.additive = True
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (additive, own)), strict=True):
        if a.shape[:2] == mask.shape:  # what is computed for padding does not count
            a, b = a[mask], b[mask]
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
            return False
    return True
