"""A mean weighted by a softmax stays in float; `auto` finds such a head by itself too."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.stages.softmax_means import softmax_means

torch.set_num_threads(1)
PLACES = 16


class Head(nn.Module):
    """A detector whose boxes' sides are means over places, weighted by a softmax."""

    def __init__(self, outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.sides, self.scores = nn.Conv2d(16, 4 * PLACES, 1), nn.Conv2d(16, 3, 1)
        self.mean = nn.Conv2d(PLACES, outputs, 1, bias=False)
        with torch.no_grad():
            self.sides.weight.mul_(8)
            self.sides.bias.copy_(-0.8 * torch.arange(float(PLACES)).repeat(4))
            self.mean.weight.copy_(torch.arange(float(PLACES)).view(1, PLACES, 1, 1).expand_as(self.mean.weight))
        columns = torch.arange(8.0) * 8 + 4
        self.centres = nn.Buffer(torch.stack(torch.meshgrid(columns, columns, indexing="xy")).view(1, 2, 64))

    def forward(self, x):
        y = self.stem(x)
        weights = self.sides(y).view(1, 4, PLACES, 64).transpose(1, 2).softmax(1)
        near, far = (self.mean(weights)[:, 0] * 8).chunk(2, 1)
        boxes = torch.cat([self.centres - near, self.centres + far], 1)
        return boxes, torch.sigmoid(self.scores(y)).view(1, 3, 64)


def exported(module):
    return torch.export.export(module.eval(), (torch.rand(1, 3, 16, 16),))


def noise(count, seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def test_the_mean_is_found_behind_what_moves_values():
    assert softmax_means(exported(Head()).module()) == ("mean",)


def test_a_layer_of_several_outputs_or_behind_no_softmax_is_none():
    assert softmax_means(exported(Head(outputs=2)).module()) == ()
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 1, 1))
    assert softmax_means(exported(plain).module()) == ()


def test_auto_finds_it_by_the_overlap_of_boxes():
    from edgeopt.stages import mixed_precision

    specs = (TensorSpec("x", (1, 3, 16, 16)),)
    choice = mixed_precision.choose_float_layers(
        exported(Head()),
        noise(32),
        specs,
        scheme_of("auto"),
        QuantizationOptions(),
        mixed_precision.Tolerance(min_agreement=0.98),
        task="object-detection",
        held_out=noise(16, seed=1),
    )
    assert choice.before.snr_db > 30, "pixels alone do not tell"
    assert choice.before.overlap < 0.98 <= choice.after.overlap and choice.reached
    assert "mean" in choice.keep_float and len(choice.keep_float) <= 3
    assert choice.held_out_after.overlap > choice.held_out_before.overlap
