"""What the quantizing stage hands on: one graph and the ranges of its activations under the float program's names."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing torchao warns about its surroundings
    from edgeopt.stages.quantize import quantize
    from edgeopt.tasks import quantize as task

torch.set_num_threads(1)
SPECS = (TensorSpec("x", (1, 3, 8, 8)),)
STATIC = scheme_of("static_wi8_ai8")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
        return torch.softmax(self.c(x.mean((2, 3))), -1)


def batches(count=6):
    generator = np.random.default_rng(0)
    return ({"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count))


def exported(module=None):
    return torch.export.export((module or Net()).eval(), (torch.rand(1, 3, 8, 8),))


@pytest.fixture(scope="module")
def made():
    return quantize(exported(), batches, SPECS, STATIC, QuantizationOptions(estimator="minmax"))


def test_ranges_go_by_the_float_programs_names(made):
    names = {n.name for n in exported().module().graph.nodes}
    assert set(made.ranges) <= names
    assert {"x", "relu", "conv2d_1", "cat", "mean", "linear"} <= set(made.ranges)
    assert "softmax" not in made.ranges and "conv2d" not in made.ranges, "float, and inside a unit"


def test_every_quantize_operator_has_its_range(made):
    steps = {
        round(n.args[1], 9)
        for n in made.program.graph.nodes
        if n.op == "call_function" and "quantize_per_tensor" in str(n.target)
    }
    assert steps == {round((high - low) / 255, 9) for low, high in made.ranges.values()}


def test_parts_of_a_concatenation_have_its_range(made):
    assert made.ranges["relu"] == made.ranges["conv2d_1"] == made.ranges["cat"]


def test_ranges_cover_what_was_seen(made):
    values = np.concatenate([b["x"].ravel() for b in batches()])
    low, high = made.ranges["x"]
    step = (high - low) / 255
    assert low == pytest.approx(values.min(), abs=step) and high == pytest.approx(values.max(), abs=step)


def test_the_given_program_stays_in_float():
    program = exported()
    before = program.module()(torch.ones(1, 3, 8, 8))
    quantize(program, batches, SPECS, STATIC, QuantizationOptions())
    assert torch.equal(program.module()(torch.ones(1, 3, 8, 8)), before)
    assert all("quantize" not in str(n.target) for n in program.graph.nodes)


def test_weights_on_the_grid_keep_their_integers():
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-127, 128, (5, 8), generator=generator)
    integers[:, 0] = 127
    net = Net()
    net.c.weight.data.copy_(integers * torch.tensor([1e-7, 0.003, 0.1, 1.0, 30.0])[:, None])
    made = quantize(exported(net), batches, SPECS, STATIC, QuantizationOptions())
    stored = [v for v in made.program.state_dict.values() if v.shape == (5, 8) and v.dtype == torch.int8]
    stored += [
        v for v in made.program.constants.values() if getattr(v, "shape", None) == (5, 8) and v.dtype == torch.int8
    ]
    assert len(stored) == 1 and torch.equal(stored[0].to(torch.int64), integers)


def test_a_model_with_nothing_to_quantize_is_told():
    class Plain(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1)

    with pytest.raises(ConversionError, match="the model has no layer that can be quantized"):
        quantize(exported(Plain()), batches, SPECS, STATIC, QuantizationOptions())


def test_no_calibration_sample_is_told():
    with pytest.raises(ConversionError, match="the data holds none"):
        quantize(exported(), lambda: iter(()), SPECS, STATIC, QuantizationOptions())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, when a program's module is copied
@pytest.mark.parametrize("precision", ["static_wi8_ai8", "dynamic_wi8_afp32"])
def test_the_task_writes_what_exporters_start_from(tmp_path, precision):
    torch.export.save(exported(), tmp_path / "program.pt2")
    (tmp_path / "calibration").mkdir()
    np.save(tmp_path / "calibration" / "x.npy", np.stack([b["x"] for b in batches()]))
    task.quantize(
        program=str(tmp_path / "program.pt2"),
        inputs=[s.to_json() for s in SPECS],
        task="generic",
        calibration=str(tmp_path / "calibration"),
        precision=precision,
        options=QuantizationOptions(rounding="nearest").model_dump(),
        out=str(tmp_path / "out"),
        threads=1,
    )
    static = precision.startswith("static")
    written = {"conditioned.pt2", "quantized.pt2", "ranges.json"} if static else {"conditioned.pt2"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == written
    conditioned = torch.export.load(tmp_path / "out" / "conditioned.pt2")
    if static:
        ranges = json.loads((tmp_path / "out" / "ranges.json").read_text())["activations"]
        assert set(ranges) <= {n.name for n in conditioned.module().graph.nodes}
        assert all(low <= 0 <= high for low, high in ranges.values())
