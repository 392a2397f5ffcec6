"""all-MiniLM-L6-v2 as one graph: encoder, mean over the tokens, unit length."""

from __future__ import annotations

import torch
from bert import Bert, mean_of_tokens, minilm
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class SentenceEncoder(nn.Module):
    """Token ids and mask `[batch, 64]` → sentence vectors of unit length `[batch, 384]`."""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return F.normalize(mean_of_tokens(self.encoder(input_ids, attention_mask), attention_mask), dim=-1)


def build() -> nn.Module:
    """Return the encoder with its published weights, in eval mode."""
    return SentenceEncoder(minilm()).eval()
