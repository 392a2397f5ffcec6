"""What each unit's quantization costs: measured on one fake-quantized graph that behaves like the real one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme, scheme_of

torch.set_num_threads(1)
INT8 = scheme_of("static_wi8_ai8")


@pytest.fixture(scope="module")
def stages():
    from types import SimpleNamespace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torchao warns about its surroundings
        from edgeopt.stages import batched_graph, fake_quantized, quantize, sensitivity

    return SimpleNamespace(
        batched=batched_graph, fake=fake_quantized, quantize=quantize.quantize, sensitivity=sensitivity
    )


def noise(shape, count, seed=0):
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def exported(module, *shape):
    return torch.export.export(module.eval(), (torch.rand(shape),)), (TensorSpec("x", shape),)


def decibel(reference, actual):
    return 10 * torch.log10(reference.square().sum() / (reference - actual).square().sum()).item()


class Residual(nn.Module):
    """Batch norm, an in-place clamp, a sum, pooling, a concatenation and a reshape that holds the batch size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_var.uniform_(0.5, 2)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(256, 6)

    def forward(self, x):
        y = nn.functional.relu(self.norm(self.stem(x)), inplace=True)
        y = y + self.body(y)
        y = torch.cat([nn.functional.max_pool2d(y, 2), nn.functional.avg_pool2d(y, 2)], 1)
        return self.head(y.view(1, 256))


class Weak(nn.Module):
    """Three layers; the second has one weight so large that eight bits leave nothing of its others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.second.weight[:, 0] = 3000.0
            self.first.weight[0] = 0
            self.first.bias[0] = 0

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(1, 5, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(1, 5, 12))


@pytest.mark.parametrize(("net", "shape"), [(Residual, (1, 3, 8, 8)), (Attention, (1, 5, 12))])
@pytest.mark.parametrize("keep_float", [False, True])
def test_the_simulation_is_the_quantized_graph_but_for_its_rounded_biases(stages, monkeypatch, net, shape, keep_float):
    monkeypatch.setattr("edgeopt.stages.quantize.settle_biases", lambda _: {})
    program, specs = exported(net(), *shape)
    program = torch.export.export(
        stages.fake.FakeQuantized(program, INT8, QuantizationOptions()).module, program.example_inputs[0]
    )
    data = noise(shape, 12)
    network = stages.fake.FakeQuantized(program, INT8, QuantizationOptions())
    samples = (torch.stack([torch.from_numpy(d["x"]) for d in data]),)
    network.calibrate([samples])
    kept = network.names[1:2] if keep_float else ()
    with torch.no_grad():
        (simulated,) = network.graph.run(samples, network.quantized(kept).view)
    real = stages.quantize(program, lambda: iter(data), specs, INT8, QuantizationOptions(keep_float=kept)).program
    performed = torch.stack([real.module()(torch.from_numpy(d["x"])) for d in data])
    original = torch.stack([program.module()(torch.from_numpy(d["x"])) for d in data])
    assert 15 < decibel(original, performed) < 60
    assert decibel(performed, simulated) > 100


@pytest.mark.parametrize(("net", "shape"), [(Residual, (1, 3, 8, 8)), (Attention, (1, 5, 12)), (Weak, (2, 8))])
def test_stacked_samples_give_what_each_gives_alone(stages, net, shape):
    program, _ = exported(net(), *shape)
    graph = stages.batched.BatchedGraph(program.module())
    stacked = (torch.stack([torch.from_numpy(d["x"]) for d in noise(shape, 7)]),)
    graph.settle(stacked)
    (together,) = graph.run(stacked)
    one_by_one = torch.stack([program.module()(x) for x in stacked[0]])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_the_unit_that_does_the_damage_stands_out(stages):
    program, specs = exported(Weak(), 1, 8)
    found = stages.sensitivity.measure_sensitivity(program, noise((1, 8), 40), specs, INT8, QuantizationOptions())
    rows = {u.name: u for u in found.units}
    assert list(rows) == ["first", "second", "third"]
    assert [rows[n].macs for n in rows] == [128, 256, 64] and rows["second"].parameters == 272
    assert found.worst_first()[0].name == "second"
    assert rows["second"].sqnr_db < 5 and rows["second"].own_sqnr_db < 5
    assert rows["first"].sqnr_db > 30 and rows["third"].sqnr_db > 30
    assert rows["second"].left_out_sqnr_db > 25 and rows["first"].left_out_sqnr_db < 5
    assert found.quantized.snr_db < 5 and found.samples == 40
    assert found.metric == "agreement" and rows["second"].metric_drop > 0.05
    assert rows["second"].left_out_gain > 0.05
    assert rows["third"].metric_drop <= 0.05


def test_each_figure_is_that_of_a_whole_run(stages):
    """Runs that start in the middle of the graph give what runs from the start give."""
    program, specs = exported(Residual(), 1, 3, 8, 8)
    data = noise((1, 3, 8, 8), 20)
    found = stages.sensitivity.measure_sensitivity(program, data, specs, INT8, QuantizationOptions())
    network = stages.fake.FakeQuantized(program, INT8, QuantizationOptions())
    samples = (torch.stack([torch.from_numpy(d["x"]) for d in data]),)
    network.calibrate([tuple(s[:16] for s in samples), tuple(s[16:] for s in samples)])
    with torch.no_grad():
        (original,) = network.graph.run(samples)
        for unit in found.units:
            (alone,) = network.graph.run(samples, network.only(unit.name).view)
            (rest,) = network.graph.run(samples, network.quantized({unit.name}).view)
            assert decibel(original, alone) == pytest.approx(unit.sqnr_db, abs=0.05)
            assert decibel(original, rest) == pytest.approx(unit.left_out_sqnr_db, abs=0.05)
        (every,) = network.graph.run(samples, network.quantized().view)
        assert decibel(original, every) == pytest.approx(found.quantized.snr_db, abs=0.05)


def test_labels_turn_agreement_into_accuracy(stages):
    module = Weak().eval()
    program, specs = exported(module, 1, 8)
    data = noise((1, 8), 30)
    answers = [int(module(torch.from_numpy(d["x"])).argmax()) for d in data]
    wrong = [(a + 1) % 4 if i < 6 else a for i, a in enumerate(answers)]
    found = stages.sensitivity.measure_sensitivity(program, data, specs, INT8, QuantizationOptions(), wrong)
    assert found.metric == "top-1" and found.float_metric == pytest.approx(0.8)
    assert found.quantized.metric < 0.8
    unlabelled = stages.sensitivity.measure_sensitivity(
        program, data, specs, INT8, QuantizationOptions(), [-1] * 30, task="feature-extraction"
    )
    assert unlabelled.metric is None and unlabelled.units[0].metric_drop is None


def test_units_kept_in_float_are_out(stages):
    program, specs = exported(Weak(), 1, 8)
    options = QuantizationOptions(keep_float=("second",))
    found = stages.sensitivity.measure_sensitivity(program, noise((1, 8), 8), specs, INT8, options)
    assert [u.name for u in found.units] == ["first", "third"] and found.quantized.snr_db > 25


@pytest.mark.parametrize("scheme", ["dynamic_wi8_afp32", "weight_only_wi8_afp32", "weight_only_wi4_afp32"])
def test_schemes_without_ranges(stages, scheme):
    program, specs = exported(Attention(), 1, 5, 12)
    found = stages.sensitivity.measure_sensitivity(
        program, noise((1, 5, 12), 6), specs, scheme_of(scheme), QuantizationOptions()
    )
    assert [u.name for u in found.units] == ["qkv", "out"]
    if scheme == "weight_only_wi4_afp32":
        assert 10 < found.quantized.snr_db < 35
    else:
        assert found.quantized.snr_db > 35


def test_the_program_is_left_as_it_was(stages):
    program, specs = exported(Residual(), 1, 3, 8, 8)
    before = {k: v.clone() for k, v in program.state_dict.items()}
    x = torch.rand(1, 3, 8, 8)
    expected = program.module()(x)
    stages.sensitivity.measure_sensitivity(program, noise((1, 3, 8, 8), 4), specs, INT8, QuantizationOptions())
    assert all(torch.equal(v, program.state_dict[k]) for k, v in before.items())
    assert torch.equal(program.module()(x), expected)


def test_what_cannot_be_measured_is_told(stages):
    program, specs = exported(nn.Softmax(-1), 1, 5)
    with pytest.raises(ConversionError, match="no layer that can be quantized"):
        stages.sensitivity.measure_sensitivity(program, noise((1, 5), 3), specs, INT8, QuantizationOptions())
    program, specs = exported(Weak(), 1, 8)
    with pytest.raises(ConversionError, match="data gives none"):
        stages.sensitivity.measure_sensitivity(program, [], specs, INT8, QuantizationOptions())
    with pytest.raises(ConversionError, match="palettized"):
        stages.sensitivity.measure_sensitivity(
            program, noise((1, 8), 3), specs, Scheme("palettized", 4, 32), QuantizationOptions()
        )
