"""A small vision transformer (Dosovitskiy et al., 2020) whose patches are made by convolutions (Xiao et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import nn

WIDTH = 128
HEADS = 4
DEPTH = 6
TOKENS = 16


def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3 × 3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Attention(nn.Module):
    """Self-attention written as matrix products of `[batch, heads, tokens, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = (batch, tokens, HEADS, width // HEADS)
        query = self.query(x).view(split).transpose(1, 2)
        key = self.key(x).view(split).permute(0, 2, 3, 1)
        value = self.value(x).view(split).transpose(1, 2)
        weights = torch.softmax(torch.matmul(query, key) / math.sqrt(width // HEADS), -1)
        return self.output(torch.matmul(weights, value).transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """Attention and a feed-forward pair, each fed with the normalised sum so far (pre-norm)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm = nn.LayerNorm(WIDTH)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.activation = nn.GELU()
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.narrow(self.activation(self.widen(self.norm(x))))


class SmallViT(nn.Module):
    """`[batch, 3, 32, 32]` → `[batch, 10]` logits: 16 tokens of 128 numbers, 6 layers, mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 1), conv(32, 64, 2), conv(64, 128, 2))
        self.patches = nn.Conv2d(128, WIDTH, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        self.layers = nn.Sequential(*(Layer() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(self.stem(image)).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(tokens + self.positions)).mean(1))


def build() -> nn.Module:
    """Return the untrained network."""
    return SmallViT()
