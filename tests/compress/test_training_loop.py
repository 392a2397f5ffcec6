"""The training loop: it learns, gives the same weights twice, and goes on where it was stopped."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from edgeopt.core.errors import ConversionError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.training import TrainingSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IMAGE = (TensorSpec("image", (1, 1, 8, 8), "float32", "NCHW"),)


def weights(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def train(parts, net, train_set, settings, **options):
    return parts.loop.fit(parts.objectives.Labels(net, settings.label_smoothing), train_set, settings, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "one-cycle", "optimizer": "sgd", "learning_rate": 0.1},
        {"ema": 0.9, "label_smoothing": 0.1, "mixup": 0.2},
    ],
    ids=["plain", "one-cycle", "ema-mixup"],
)
def test_it_learns_and_repeats_itself(parts, net, train_set, test_set, changes, score):
    settings = TrainingSettings(steps=120, batch_size=50, learning_rate=5e-3).model_copy(update=changes)
    twin = copy.deepcopy(net)
    before = score(net)
    fitted = train(parts, net, train_set, settings, seed=3)
    assert fitted.steps == 120 and fitted.resumed == 0 and not fitted.stopped
    assert score(net) > max(0.6, before + 0.3)
    train(parts, twin, train_set, settings, seed=3)
    assert same(weights(net), weights(twin)), "the same seed gives the same weights"


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(parts, net, train_set, tmp_path, monkeypatch):
    settings = TrainingSettings(steps=40, batch_size=50, ema=0.9, mixup=0.2, checkpoint_every=10)
    whole, broken = copy.deepcopy(net), copy.deepcopy(net)
    again = copy.deepcopy(net)
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
    fitted = train(parts, again, train_set, settings, checkpoint=tmp_path / "c.pt")
    assert fitted.resumed == 20 and fitted.steps == 40
    assert same(weights(whole), weights(again))


class Images(torch.nn.Module):
    """Ends in a mean over places, or views the values as they lie, channels first."""

    def __init__(self, views):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(256 if views else 4, 10)
        self.views = views

    def forward(self, image):
        x = torch.relu(self.second(torch.relu(self.first(image))))
        return self.head(x.view(-1, 256) if self.views else x.mean((2, 3)))


@pytest.mark.parametrize("views", [False, True])
def test_channels_are_last_in_training_where_the_graph_allows_it(parts, train_set, monkeypatch, views):
    net = parts.network.to_network(parts.network.export(Images(views).eval(), IMAGE))
    first = []
    step = parts.loop._Run._step

    def watched(run, number):
        step(run, number)
        first.append(run.objective.student.get_submodule("second").weight.is_contiguous())

    monkeypatch.setattr(parts.loop._Run, "_step", watched)
    train(parts, net, train_set, TrainingSettings(steps=2, batch_size=8))
    assert first == [views, views]
    assert all(p.is_contiguous() for p in net.parameters())


def test_a_checkpoint_of_other_settings_is_refused(parts, net, train_set, tmp_path):
    settings = TrainingSettings(steps=4, batch_size=50, checkpoint_every=2)
    train(parts, copy.deepcopy(net), train_set, settings, checkpoint=tmp_path / "c.pt")
    other = settings.model_copy(update={"learning_rate": 1e-4})
    with pytest.raises(UsageError, match="checkpoint of other settings"):
        train(parts, copy.deepcopy(net), train_set, other, checkpoint=tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="not a checkpoint"):
        train(parts, net, train_set, settings, checkpoint=tmp_path / "c.pt")


def test_it_stops_early_and_keeps_the_best(parts, net, train_set):
    settings = TrainingSettings(steps=100, batch_size=50, evaluate_every=5, patience=2)
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    seen = []

    def evaluate():
        seen.append(weights(net))
        return next(scores)

    fitted = train(parts, net, train_set, settings, evaluate=evaluate)
    assert fitted.stopped and fitted.best == 0.9 and fitted.steps == 20
    assert same(weights(net), seen[1])


def test_divergence_is_told(parts, net, train_set):
    with pytest.raises(ConversionError, match=r"diverged at step .*: lower learning_rate"):
        train(parts, net, train_set, TrainingSettings(steps=50, learning_rate=1e30, clip_norm=None, optimizer="sgd"))


def test_a_device_that_is_not_there(parts, net, train_set):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(UsageError, match=r"--device mps: .* there is cpu"):
        train(parts, net, train_set, TrainingSettings(steps=1), device="mps")


def test_every_sample_is_met_once_in_an_epoch(parts):
    met = np.concatenate([parts.examples.indices_of_step(s, 103, 10, 7) for s in range(10)])
    assert len(met) == len(set(met)) == 100
    assert not np.array_equal(met[:10], parts.examples.indices_of_step(10, 103, 10, 7))


def test_schedules_begin_and_end_as_they_say(parts):
    rate = parts.schedules.rate_at
    cosine = TrainingSettings(warm_up=0.1)
    assert rate(0, 100, cosine) == 0.1 and rate(9, 100, cosine) == 1.0 and rate(99, 100, cosine) < 0.01
    cycle = TrainingSettings(schedule="one-cycle", warm_up=0.25)
    assert rate(0, 100, cycle) == pytest.approx(1 / 25) and rate(25, 100, cycle) == 1.0
    assert rate(50, 100, TrainingSettings(schedule="constant", warm_up=0)) == 1.0


def test_mixing_and_shifting_keep_shapes_and_proportion(parts):
    settings = TrainingSettings(mixup=1.0, flip=True, shift=2)
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    batch = parts.augment.augmented((images,), labels, settings, "NCHW", 5)
    assert batch.inputs[0].shape == images.shape and 0 < batch.share < 1
    again = parts.augment.augmented((images,), labels, settings, "NCHW", 5)
    assert torch.equal(batch.inputs[0], again.inputs[0]) and torch.equal(batch.others, again.others)
    assert torch.equal(parts.augment.augmented((images,), labels, TrainingSettings(), "NCHW", 5).inputs[0], images)


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (40, 3, 8, 8)), ("NHWC", (40, 8, 8, 3))])
def test_a_square_of_each_image_is_covered_with_its_mean_colour(parts, layout, shape):
    images, labels = torch.rand(shape), torch.arange(40)
    seen = parts.augment.augmented((images,), labels, TrainingSettings(cutout=4), layout, 5).inputs[0]
    if layout == "NHWC":
        images, seen = images.permute(0, 3, 1, 2), seen.permute(0, 3, 1, 2)
    covered = (seen != images).all(1)
    assert torch.equal(seen[~covered[:, None].expand_as(seen)], images[~covered[:, None].expand_as(seen)])
    for image, own, hidden in zip(images, seen, covered, strict=True):
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, rows[:, None] & columns[None]) and 2 <= rows.sum() <= 4 and 2 <= columns.sum() <= 4
        assert torch.allclose(own[:, hidden], image.mean((1, 2))[:, None].expand(3, int(hidden.sum())))
    assert len({tuple(h.flatten().tolist()) for h in covered}) > 10, "each image has a place of its own"
