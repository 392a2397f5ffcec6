"""A MobileNet-style digit classifier: depthwise-separable convolutions, inverted residuals, batch norm and ReLU6."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (Sandler et al., MobileNetV2, 2018); adds its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = conv(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = conv(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MnistMobileNet(nn.Module):
    """`[batch, 1, 28, 28]` normalized grey digits → `[batch, 10]` logits; 79,562 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                stem=conv(1, 16, 3),
                block1=InvertedResidual(16, 24, stride=2, expansion=1),
                block2=InvertedResidual(24, 24, stride=1, expansion=4),
                block3=InvertedResidual(24, 48, stride=2, expansion=4),
                block4=InvertedResidual(48, 48, stride=1, expansion=4),
                block5=InvertedResidual(48, 64, stride=1, expansion=4),
                head=conv(64, 256, 1),
            )
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(256, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.features(image).mean((2, 3))))


def build() -> nn.Module:
    """Return the untrained network."""
    return MnistMobileNet()
