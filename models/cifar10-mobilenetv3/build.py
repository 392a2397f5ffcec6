"""timm's MobileNetV3 with a block table for 32 × 32 images: a quarter of the strides."""

from __future__ import annotations

from functools import partial

from torch import nn

from edgeopt.sources.torchvision_ops import import_torchvision

import_torchvision()

from timm.models._efficientnet_blocks import SqueezeExcite  # noqa: E402 - timm imports torchvision
from timm.models._efficientnet_builder import decode_arch_def, round_channels  # noqa: E402
from timm.models.mobilenetv3 import MobileNetV3  # noqa: E402

# As in MobileNetV3 (Howard et al., 2019): inverted residuals with depthwise convolutions, squeeze-and-excite and
# hard-swish, ReLU in the early blocks (nre). The two early blocks expand by a full 3 × 3 convolution (er, as in
# MobileNet-EdgeTPU), which learns faster. Sides of the feature maps: 32 (stem), 16, 8, 8, 4, 4.
BLOCKS = [
    ["er_r1_k3_s2_e4_c32_nre"],
    ["er_r1_k3_s2_e4_c64_nre"],
    ["ir_r3_k3_s1_e3_c64_se0.25"],
    ["ir_r1_k5_s2_e4_c128_se0.25", "ir_r2_k3_s1_e3_c128_se0.25"],
    ["cn_r1_k1_s1_c512"],
]


def build() -> nn.Module:
    """Return the untrained network: `[batch, 3, 32, 32]` → `[batch, 10]` logits."""
    excite = partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels)
    model = MobileNetV3(
        decode_arch_def(BLOCKS),
        num_classes=10,
        num_features=512,
        stem_size=16,
        fix_stem=True,
        act_layer=nn.Hardswish,
        se_layer=excite,
    )
    model.conv_stem.stride = (1, 1)
    return model
