"""ResNet-20 for 32 × 32 images (He et al., 2015, section 4.2); a 1 × 1 convolution joins blocks of different shape."""

from __future__ import annotations

import torch
from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two 3 × 3 convolutions whose result is added to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride)
        self.second = conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.second(self.activation(self.first(x))) + self.shortcut(x))


class ResNet20(nn.Module):
    """`[batch, 3, 32, 32]` → `[batch, 10]` logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        blocks = [
            Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1)
            for inputs, outputs, stride in widths
            for i in range(3)
        ]
        self.features = nn.Sequential(conv(3, 16, 3), nn.ReLU(), *blocks)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean((2, 3)))


def build() -> nn.Module:
    """Return the untrained network."""
    return ResNet20()
