"""EfficientNet-Lite1 and -Lite2, for the weights in their packages."""

from __future__ import annotations

from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def lite1() -> nn.Module:
    return EfficientNet.from_name("efficientnet-lite1", drop_connect_rate=0.0)


def lite2() -> nn.Module:
    return EfficientNet.from_name("efficientnet-lite2", drop_connect_rate=0.0)
