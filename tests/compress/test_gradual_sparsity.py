"""Zeros that grow during training: their number over time, what is chosen, and runs that were stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

from edgeopt.core.errors import UsageError
from edgeopt.core.pruning import GradualSparsity, SparsifyOptions
from edgeopt.core.training import TrainingSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def sparse(parts):
    from types import SimpleNamespace

    from edgeopt.stages import sparsify
    from edgeopt.training import sparsity

    return SimpleNamespace(
        sparsify=sparsify.sparsify, record=sparsify.sparsity_record, bytes=sparsify.compressed_bytes, growing=sparsity
    )


def settings_with(sparsity, **changes):
    settings = {"steps": 100, "batch_size": 50, "learning_rate": 5e-3, "checkpoint_every": 10} | changes
    return TrainingSettings(sparsity=GradualSparsity(**sparsity), **settings)


def train(parts, net, train_set, settings, **options):
    return parts.loop.fit(parts.objectives.Labels(net, 0.0), train_set, settings, **options)


def test_the_share_grows_along_a_cubic(sparse, net):
    growing = sparse.growing.GrowingZeros(net, GradualSparsity(ratio=0.8, begin=0.1, end=0.6), 100)
    assert [growing.share(s) for s in (0, 9, 10)] == [0, 0, 0]
    assert growing.share(35) == pytest.approx(1 - 0.5**3)
    assert growing.share(60) == growing.share(100) == 1


@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_it_ends_with_the_zeros_asked_for_and_beats_one_cut_at_the_end(
    parts, sparse, make_net, train_set, score, importance
):
    net = make_net()
    before = sparse.bytes(net)
    options = {"ratio": 0.75, "importance": importance}
    train(parts, net, train_set, settings_with(options, ema=0.5))
    record = sparse.record(net, before, GradualSparsity(**options))
    assert record["zeros"] == pytest.approx(0.75, abs=0.002)
    assert record["deflated_bytes"][1] < 0.6 * before == 0.6 * record["deflated_bytes"][0]
    once = make_net()
    train(parts, once, train_set, TrainingSettings(steps=100, batch_size=50, learning_rate=5e-3))
    cut, _ = sparse.sparsify(once, SparsifyOptions(ratio=0.75))
    assert score(net) > score(cut) + 0.2


@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_a_pattern_is_held_in_the_end(parts, sparse, net, train_set, importance):
    options = GradualSparsity(pattern="2:4", keep=("head",), importance=importance, every=5)
    train(parts, net, train_set, settings_with(options.model_dump(), steps=30))
    groups = net.get_submodule("wide.0").weight.flatten(1).reshape(32, 4, 4)
    assert bool(((groups != 0).sum(-1) == 2).all())
    assert bool((net.get_submodule("head").weight != 0).all())
    assert "no multiple of 4" in sparse.record(net, 1, options)["left_dense"]["stem.0"]


def test_movement_keeps_what_training_pushes_away_from_zero(sparse, net):
    growing = sparse.growing.GrowingZeros(net, GradualSparsity(ratio=0.5, importance="movement", every=1, end=1), 1)
    for weight in growing.weights:
        pushed = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0
        weight.grad = torch.where(pushed, -weight.detach().sign(), weight.detach().sign())
    growing.before_update()
    growing.after_update(0)
    for weight in growing.weights:
        assert bool((weight.flatten()[::2] != 0).all()) and bool((weight.flatten()[1::2] == 0).all())


def test_a_stopped_run_goes_on_and_ends_with_the_same_zeros(parts, make_net, train_set, tmp_path, monkeypatch):
    settings = settings_with({"ratio": 0.8, "importance": "movement", "every": 3}, steps=40)
    whole, broken, again = make_net(), make_net(), make_net()
    train(parts, whole, train_set, settings)
    step = parts.loop._Run._step

    def failing(run, number):
        if number == 25:
            raise KeyboardInterrupt
        step(run, number)

    monkeypatch.setattr(parts.loop._Run, "_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train(parts, broken, train_set, settings, checkpoint=tmp_path / "c.pt")
    monkeypatch.setattr(parts.loop._Run, "_step", step)
    assert train(parts, again, train_set, settings, checkpoint=tmp_path / "c.pt").resumed == 20
    ours = again.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in whole.state_dict().items())


def test_what_makes_no_sense_is_refused(sparse, net):
    with pytest.raises(ValidationError, match="give either ratio or pattern"):
        GradualSparsity()
    with pytest.raises(ValidationError, match="must come before end"):
        GradualSparsity(ratio=0.5, begin=0.8, end=0.5)
    with pytest.raises(ValidationError, match="patience would keep weights"):
        settings_with({"ratio": 0.5}, patience=2, evaluate_every=5)
    with pytest.raises(ValidationError, match="movement needs gradients in one scale"):
        settings_with({"ratio": 0.5, "importance": "movement"}, amp="fp16")
    with pytest.raises(UsageError, match="no layer 'hed'; did you mean 'head'"):
        sparse.growing.GrowingZeros(copy.deepcopy(net), GradualSparsity(ratio=0.5, keep=("hed",)), 10)
