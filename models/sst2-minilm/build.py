"""MiniLM with a sentiment head: weights.safetensors holds low-rank updates to the packaged encoder's weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "minilm"))

from bert import WIDTH, Bert, mean_of_tokens, minilm, package_file  # noqa: E402, F401 - it lies beside the other model

WEIGHTS = HERE / "weights.safetensors"


class Classifier(nn.Module):
    """Token ids and mask `[batch, 64]` → logits `[batch, 2]`: negative, positive."""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        pooled = mean_of_tokens(self.encoder(input_ids, attention_mask), attention_mask)
        return self.head(self.dropout(torch.tanh(self.dense(pooled))))


def merge(model: Classifier, weights: dict[str, torch.Tensor]) -> None:
    """Add each layer's `NAME.up @ NAME.down` to its weight and take `dense` and `head` as they are."""
    own = model.state_dict()
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        if part == "up":
            own[f"{layer}.weight"] += value.float() @ weights[f"{layer}.down"].float()
        elif part != "down":
            own[name].copy_(value)


def build(weights: Path = WEIGHTS) -> nn.Module:
    """Return the classifier with its weights, in eval mode."""
    model = Classifier(minilm())
    merge(model, load_file(weights))
    return model.eval()
