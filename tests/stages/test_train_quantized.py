"""Training with quantization in the loop: it recovers accuracy, ends on the grid, and goes on where it was stopped."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme, scheme_of

torch.set_num_threads(1)
INT8 = scheme_of("static_wi8_ai8")
INT4 = Scheme("static", 4, 8)
OPTIONS = QuantizationOptions()


@pytest.fixture(scope="module")
def stages():
    from types import SimpleNamespace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torchao warns about its surroundings
        from edgeopt.stages import fake_quantized, quantize, train_quantized
    return SimpleNamespace(
        train=train_quantized.train_quantized,
        options=train_quantized.TrainingOptions,
        module=train_quantized,
        fake=fake_quantized.FakeQuantized,
        quantize=quantize.quantize,
    )


def digits(count, seed):
    """Ten noisy patterns of 8×8 pixels and their numbers."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((10, 1, 8, 8))
    labels = generator.integers(0, 10, count)
    images = patterns[labels] + 1.2 * generator.standard_normal((count, 1, 8, 8))
    return images.astype(np.float32)[:, None], labels


class Net(nn.Module):
    """Its reshape holds the batch size of one, as a transformer's does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(288, 24), nn.Linear(24, 10)

    def forward(self, x):
        y = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.hidden(y.reshape(y.shape[0], 288))))


def exported(net):
    return torch.export.export(net.eval(), (torch.rand(1, 1, 8, 8),))


@pytest.fixture(scope="module")
def net():
    """Trained on noisy digits."""
    net = Net()
    images, labels = digits(2000, 0)
    x, y = torch.from_numpy(images[:, 0]), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(120):
        part = slice(step * 100 % 2000, step * 100 % 2000 + 100)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[part]), y[part]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def trained(net):
    return exported(net)


SPECS = (TensorSpec("x", (1, 1, 8, 8)),)


def accuracy(stages, program, scheme):
    """Of the program in float, and quantized."""
    images, labels = digits(600, 1)
    network = stages.fake(program, scheme, OPTIONS)
    network.calibrate([(torch.from_numpy(digits(64, 2)[0]),)])
    samples = (torch.from_numpy(images),)
    found = []
    with torch.no_grad():
        for view in (None, network.quantized().view):
            answers = network.graph.run(samples, view)[0].argmax(-1).flatten().numpy()
            found.append(float((answers == labels).mean()))
    return tuple(found)


def coarse(net):
    """The same with a large weight in each row of the head, on a feature that is always zero."""
    spread = copy.deepcopy(net)
    spread.hidden.weight.data[0] = 0
    spread.hidden.bias.data[0] = -1
    spread.head.weight.data[:, 0] = 3
    return exported(spread)


def test_training_recovers_what_rounding_to_four_bits_loses(stages, net):
    program = coarse(net)
    original, rounded = accuracy(stages, program, INT4)
    assert original - rounded > 0.03
    options = stages.options(steps=150, learning_rate=2e-3, batch_size=64)
    found = stages.train(program, {"x": digits(1500, 3)[0]}, SPECS, INT4, OPTIONS, options)
    after_float, after = accuracy(stages, found.program, INT4)
    assert after > original - 0.01 and after > rounded + 0.03
    assert abs(after_float - after) < 0.02
    assert found.loss_after < 0.5 * found.loss_before and found.steps == 150


@pytest.mark.parametrize(("scheme", "largest"), [(INT8, 127), (INT4, 7)])
def test_weights_end_on_the_grid(stages, trained, scheme, largest):
    options = stages.options(steps=12, learning_rate=1e-2)
    found = stages.train(trained, {"x": digits(200, 3)[0]}, SPECS, scheme, OPTIONS, options)
    network = stages.fake(found.program, scheme, OPTIONS)
    layers = network.layers()
    assert [layer.name for layer, _ in layers] == ["conv", "hidden", "head"]
    moved = 0
    for layer, grid in layers:
        rows = layer.weight.flatten(1)
        groups = rows if grid.block is None else rows.reshape(-1, grid.block)
        scale = groups.abs().amax(1, keepdim=True) / largest
        integers = groups / scale
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert (integers.round().abs().amax(1) == largest).all()
        moved += int((layer.weight != network.module.get_parameter(f"{layer.name}.weight")).sum())
    weights = {n: v for n, v in found.program.state_dict.items() if n.endswith("hidden.weight")}
    assert all((v != trained.state_dict[n]).float().mean() > 0.5 for n, v in weights.items())


def test_quantizing_the_result_rounds_nothing(stages, trained):
    """The int8 weights in the quantized graph stand for the trained float weights bit for bit."""
    images = digits(100, 3)[0]
    options = stages.options(steps=10, learning_rate=1e-2)
    found = stages.train(trained, {"x": images}, SPECS, INT8, OPTIONS, options)
    data = [{"x": image} for image in images[:32]]
    quantized = stages.quantize(found.program, lambda: iter(data), SPECS, INT8, OPTIONS).program
    stored = {
        tuple(v.shape): v
        for v in {**quantized.state_dict, **quantized.constants}.values()
        if isinstance(v, torch.Tensor) and v.dtype == torch.int8
    }
    seen = 0
    for name, weight in found.program.state_dict.items():
        if name.endswith("weight") and not name.startswith("norm"):
            integers = stored[tuple(weight.shape)]
            peak = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1))
            assert torch.equal(integers * (peak / 127), weight)
            assert (integers.flatten(1).abs().amax(1) == 127).all()
            seen += 1
    assert seen == 3


def test_a_stopped_run_ends_as_if_it_had_not_been(stages, trained, tmp_path, monkeypatch):
    samples = {"x": digits(100, 3)[0]}
    options = stages.options(steps=20, learning_rate=1e-2, checkpoint_every=5, calibration_samples=32)
    whole = stages.train(trained, samples, SPECS, INT8, OPTIONS, options)
    path = tmp_path / "training.pt"

    def stop(line):
        if line.startswith("training 20/"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.module, "report", stop)
        stages.train(trained, samples, SPECS, INT8, OPTIONS, options, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert state["done"] == 15 and [p.name for p in tmp_path.iterdir()] == ["training.pt"]
    performed = []
    monkeypatch.setattr(stages.module, "report", performed.append)
    resumed = stages.train(trained, samples, SPECS, INT8, OPTIONS, options, checkpoint=path)
    assert not any(line.startswith("training 10/") for line in performed), "the first ten steps are not done again"
    for name, value in whole.program.state_dict.items():
        assert torch.equal(value, resumed.program.state_dict[name]), name


def test_a_checkpoint_of_another_run_is_refused(stages, trained, tmp_path):
    samples = {"x": digits(40, 3)[0]}
    path = tmp_path / "training.pt"
    short = stages.options(steps=2, calibration_samples=16)
    stages.train(trained, samples, SPECS, INT8, OPTIONS, short, checkpoint=path)
    other = stages.options(steps=2, calibration_samples=16, learning_rate=1e-5)
    with pytest.raises(UsageError, match="other options"):
        stages.train(trained, samples, SPECS, INT8, OPTIONS, other, checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a checkpoint"):
        stages.train(trained, samples, SPECS, INT8, OPTIONS, short, checkpoint=path)


def test_the_seed_decides(stages, trained):
    samples = {"x": digits(100, 3)[0]}

    def weights(seed):
        options = stages.options(steps=4, learning_rate=1e-2, seed=seed, calibration_samples=16)
        return stages.train(trained, samples, SPECS, INT8, OPTIONS, options).program.state_dict

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_labels_teach_without_a_teacher(stages, trained):
    images, labels = digits(600, 3)
    options = stages.options(steps=60, learning_rate=3e-3, distill=False, batch_size=64)
    wrong = (labels + 1) % 10
    found = stages.train(trained, {"x": images}, SPECS, INT8, OPTIONS, options, wrong.tolist())
    assert accuracy(stages, found.program, INT8)[1] < 0.3, "it learned what it was told, not what it knew"
    with pytest.raises(UsageError, match="labels"):
        stages.train(trained, {"x": images}, SPECS, INT8, OPTIONS, options)


def test_outputs_that_are_no_classes_are_distilled_too(stages):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Linear(6, 32)
            self.large, self.small = nn.Linear(32, 3), nn.Linear(32, 2)

        def forward(self, x):
            y = torch.tanh(self.body(x))
            return torch.cat([self.large(y) * 500, self.small(y)], 1).unsqueeze(2)

    program = torch.export.export(Pair().eval(), (torch.rand(1, 6),))
    samples = {"x": np.random.default_rng(0).standard_normal((300, 1, 6)).astype(np.float32)}
    options = stages.options(steps=80, learning_rate=3e-3)
    kept = QuantizationOptions(keep_float=("cat",))
    found = stages.train(program, samples, (TensorSpec("x", (1, 6)),), INT4, kept, options)
    assert found.loss_after < 0.5 * found.loss_before


def test_nothing_to_learn_from_is_told(stages, trained):
    with pytest.raises(ConversionError, match="needs samples"):
        stages.train(trained, {"x": np.zeros((0, 1, 1, 8, 8), np.float32)}, SPECS, INT8, OPTIONS)
    bad = {"x": np.full((8, 1, 1, 8, 8), np.nan, np.float32)}
    with pytest.raises(ConversionError, match="diverged"):
        stages.train(trained, bad, SPECS, INT8, OPTIONS, stages.options(steps=3, calibration_samples=4))
