from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec

torch.set_num_threads(1)
INPUTS = (TensorSpec("image", (1, 1, 8, 8), "float32", "NCHW"),)


class Net(nn.Module):
    """A residual net with a depthwise convolution, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.narrow = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.shortcut = nn.Conv2d(16, 16, 1, 2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.stem(image)
        x = self.narrow(self.deep(self.wide(x))) + self.shortcut(x)
        return self.head(self.dropout(x.mean((2, 3))))


def patterns(count, seed):
    """Ten noisy patterns of 8×8 pixels and their numbers."""
    draw = np.random.default_rng(seed)
    known = np.random.default_rng(99).standard_normal((10, 1, 8, 8))
    labels = draw.integers(0, 10, count)
    return (known[labels] + 0.8 * draw.standard_normal((count, 1, 8, 8))).astype(np.float32), labels


@pytest.fixture(scope="session")
def parts():
    """The training package, imported once, its packages' warnings apart."""
    from types import SimpleNamespace

    if find_spec("lightning") is None:  # importing it needs what is imported below
        pytest.skip("needs lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgeopt.sources.torchvision_ops import import_torchvision

        import_torchvision()
        if find_spec("torch_pruning"):
            import torch_pruning  # noqa: F401
        from edgeopt.training import augment, evaluation, examples, loop, network, objectives, schedules
    return SimpleNamespace(
        augment=augment,
        evaluation=evaluation,
        examples=examples,
        loop=loop,
        network=network,
        objectives=objectives,
        schedules=schedules,
        prunes=find_spec("torch_pruning") is not None,
    )


@pytest.fixture(scope="session")
def make_net(parts):
    """A new network of the same weights each time."""

    def make():
        torch.manual_seed(0)
        return parts.network.to_network(parts.network.export(Net().eval(), INPUTS))

    return make


@pytest.fixture
def net(make_net):
    return make_net()


@pytest.fixture(scope="session")
def train_set(parts):
    images, labels = patterns(600, 0)
    return parts.examples.Examples((images,), labels)


@pytest.fixture(scope="session")
def test_set(parts):
    images, labels = patterns(200, 1)
    return parts.examples.Examples((images,), labels)


@pytest.fixture(scope="session")
def score(parts, test_set):
    """Top-1 of a network on samples that training does not see."""
    return lambda network: parts.evaluation.evaluate(network, test_set, INPUTS, "image-classification").value
