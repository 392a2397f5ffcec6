"""`auto` finds the units that quantization breaks, names them and no others, and restores the accuracy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of

torch.set_num_threads(1)
INT8 = scheme_of("auto")


@pytest.fixture(scope="module")
def stage():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torchao warns about its surroundings
        from edgeopt.stages import mixed_precision
    return mixed_precision


def noise(shape, count, seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def choose(stage, module, shape, *, count=32, **options):
    program = torch.export.export(module.eval(), (torch.rand(shape),))
    specs = (TensorSpec("x", shape),)
    return stage.choose_float_layers(
        program, noise(shape, count), specs, INT8, QuantizationOptions(), held_out=noise(shape, 16, seed=1), **options
    )


class Detector(nn.Module):
    """A head as detectors have it: boxes in pixels and scores between 0 and 1 in one tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x):
        y = self.stem(x)
        boxes = torch.sigmoid(self.boxes(y)).view(1, 4, 64) * 640
        return torch.cat([boxes, torch.sigmoid(self.scores(y)).view(1, 6, 64)], 1)


class FeedForward(nn.Module):
    def __init__(self, width, outlier):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if outlier:
            with torch.no_grad():
                self.fc1.bias[3] = 2000.0
                self.fc2.weight[:, 3] = 1e-4

    def forward(self, x):
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Transformer(nn.Module):
    """Attention and three feed-forward blocks; in the second one hidden value is hundreds of times the others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.proj = nn.Linear(12, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.first, self.second, self.third = (FeedForward(32, outlier) for outlier in (False, True, False))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(x).view(1, 10, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(1, 10, 32))
        return self.head(self.third(self.second(self.first(x))))


def test_boxes_beside_scores_are_found(stage):
    choice = choose(stage, Detector(), (1, 3, 16, 16))
    assert choice.before.snr_db < 10, "the scores must suffer, and be seen to beside the boxes"
    assert choice.keep_float == ("cat",) and choice.reached
    assert choice.after.snr_db > 30 and choice.held_out_after.snr_db > 30 and choice.held_out_before.snr_db < 10
    assert choice.macs_share == 0


def test_an_outlier_in_a_feed_forward_block_is_found(stage):
    choice = choose(stage, Transformer(), (1, 10, 12), tolerance=stage.Tolerance(min_snr_db=25))
    assert choice.before.snr_db < 15
    assert choice.keep_float == ("second.fc1", "second.fc2") and choice.reached
    assert choice.after.snr_db >= 25 and choice.held_out_after.snr_db >= 25
    assert 0 < choice.parameters_share < 0.5


def test_the_choice_holds_in_the_quantized_graph(stage):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgeopt.stages.quantize import quantize
    module, shape = Detector().eval(), (1, 3, 16, 16)
    data = noise(shape, 32)
    program = torch.export.export(module, (torch.rand(shape),))
    options = QuantizationOptions(keep_float=("cat",))
    real = quantize(program, lambda: iter(data), (TensorSpec("x", shape),), INT8, options).program.module()
    wanted, actual = (torch.cat([m(torch.from_numpy(d["x"])) for d in data])[:, 4:] for m in (module, real))
    assert 10 * torch.log10(wanted.square().sum() / (wanted - actual).square().sum()) > 30


def test_a_network_within_the_tolerance_keeps_nothing(stage):
    choice = choose(stage, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)), (1, 2, 8))
    assert choice.keep_float == () and choice.reached and len(choice.steps) == 1
    assert choice.before == choice.after and choice.macs_share == choice.parameters_share == 0


class Weak(nn.Module):
    """A large layer and a small one, each with weights that eight bits cannot hold, among sound ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.b.weight[:, 0] = 3000.0
            self.a.weight[0] = 0
            self.a.bias[0] = 0

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_labels_decide_where_there_are_any(stage):
    module = Weak().eval()
    labels = [int(module(torch.from_numpy(d["x"])).argmax()) for d in noise((1, 8), 48)]
    fresh = [int(module(torch.from_numpy(d["x"])).argmax()) for d in noise((1, 8), 16, seed=1)]
    options = {"count": 48, "labels": labels, "held_out_labels": fresh}
    choice = choose(stage, module, (1, 8), tolerance=stage.Tolerance(max_drop=0.05), **options)
    assert choice.original.metric == 1 and choice.before.metric < 0.95
    assert choice.keep_float == ("b",) and choice.after.metric >= 0.95
    assert choice.held_out_original.metric == 1 and choice.held_out_after.metric > choice.held_out_before.metric
    loose = choose(stage, module, (1, 8), tolerance=stage.Tolerance(max_drop=0.99), **options)
    assert loose.keep_float == ()


def test_what_cannot_be_reached_is_said(stage):
    """The network gives no number even in float."""

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)[:, None] / 0.0

    choice = choose(stage, Broken(), (1, 4))
    assert not choice.reached


names = [f"u{i}" for i in range(12)]


@given(
    needed=st.sets(st.sampled_from(names), min_size=1, max_size=4),
    order=st.permutations(names),
    prices=st.lists(st.floats(0.01, 1), min_size=12, max_size=12),
)
def test_the_search_finds_exactly_what_is_needed(stage, needed, order, prices):
    tried = []

    def allowed(kept):
        tried.append(frozenset(kept))
        return needed <= set(kept)

    prefix = stage._prefix(list(order), allowed)
    assert needed <= set(prefix) and prefix == list(order[: len(prefix)])
    assert len(prefix) == 1 + max(order.index(n) for n in needed)
    found = stage._pruned(prefix, dict(zip(names, prices, strict=True)), allowed)
    assert found == needed
    assert len(tried) < 60
