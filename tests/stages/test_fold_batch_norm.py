from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeopt.stages.fold_batch_norm import fold_batch_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied


class Pair(nn.Module):
    def __init__(self, layer, norm, act=None):
        super().__init__()
        self.layer, self.norm, self.act = layer, norm, act or nn.Identity()

    def forward(self, x):
        return self.act(self.norm(self.layer(x)))


class SharedWeight(nn.Module):
    """One convolution used twice, before two normalizations."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


class ReadTwice(nn.Module):
    """The convolution's own output is read as well."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


def fold(module, *shape):
    """Return how many were folded, the SNR of the function kept in dB, and the graph's targets."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.1, 3)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    x = torch.randn(shape)
    graph = copy.deepcopy(torch.export.export(module.eval(), (x,)).module())
    with torch.no_grad():
        before = graph(x)
        count = fold_batch_norm(graph)
        error = graph(x) - before
    snr = float(10 * torch.log10(before.pow(2).sum() / error.pow(2).sum().clamp(min=1e-30)))
    return count, snr, [str(n.target) for n in graph.graph.nodes]


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6, affine=False), (2, 4, 8, 8)),
        (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, eps=0.1), (2, 4, 8, 8)),
        (nn.Conv1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 4, 16)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), (2, 4, 8, 8)),
        (nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), (2, 4, 8, 8)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    ],
)
def test_keeps_the_function(layer, norm, shape):
    count, snr, targets = fold(Pair(layer, norm, nn.Hardswish()), *shape)
    assert count == 1
    assert snr > 100
    assert not any("batch_norm" in t for t in targets)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (SharedWeight(), (2, 4, 8, 8)),
        (ReadTwice(), (2, 4, 8, 8)),
        (Pair(nn.ReLU(), nn.BatchNorm2d(4)), (2, 4, 8, 8)),
        (Pair(nn.Linear(4, 6), nn.BatchNorm1d(5)), (2, 5, 4)),
    ],
    ids=["shared weight", "output read twice", "no layer", "other axis"],
)
def test_leaves_alone_what_it_would_change(module, shape):
    count, _, targets = fold(module, *shape)
    assert count == 0
    assert any("batch_norm" in t for t in targets)
