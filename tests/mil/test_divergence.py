"""Naming the operator where an artifact departs from its original."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil

from edgeopt.core.errors import ParityError
from edgeopt.mil import Evaluator, load_package
from edgeopt.mil.divergence import against_exported, against_program

mb = mil.Builder

# torch's own export code uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@pytest.fixture(scope="module")
def faulty(small_net: torch.nn.Module, small_input: np.ndarray, tmp_path_factory: Any, convert: Any) -> Path:
    """The small network with one filter of its second convolution wrong."""
    twin = type(small_net)()
    twin.load_state_dict(small_net.state_dict())
    with torch.no_grad():
        twin.body.weight[5] *= -1
    return convert(twin, (torch.from_numpy(small_input),), tmp_path_factory.mktemp("faulty") / "faulty.mlpackage")


def test_wrong_layer_is_named_against_the_float_twin(faulty: Path, small_program: Any, small_input: np.ndarray) -> None:
    report = against_program(Evaluator(load_package(faulty)), Evaluator(small_program), {"x": small_input})
    assert report.first is not None
    assert (report.first.operator, report.first.name) == ("conv", "conv2d_1")
    assert report.worst_losses[0].name == "conv2d_1"
    assert "conv conv2d_1 is the first" in report.summary()
    before = report.pairs[: report.pairs.index(report.first)]
    assert before
    assert all(pair.snr_db > 100 for pair in before)


@pytest.mark.parametrize("decomposed", [False, True])
def test_wrong_layer_is_named_against_pytorch(
    faulty: Path, small_net: torch.nn.Module, small_input: np.ndarray, decomposed: bool
) -> None:
    exported = torch.export.export(small_net, (torch.from_numpy(small_input),))
    exported = exported.run_decompositions({}) if decomposed else exported
    report = against_exported(Evaluator(load_package(faulty)), exported, {"x": small_input})
    assert report.first is not None
    assert report.first.name == "conv2d_1"


def test_sound_artifact_has_no_divergence(
    small_program: Any, small_net: torch.nn.Module, small_input: np.ndarray
) -> None:
    exported = torch.export.export(small_net, (torch.from_numpy(small_input),))
    report = against_exported(Evaluator(small_program), exported, {"x": small_input}, threshold_db=100.0)
    assert report.first is None
    assert "no operator of" in report.summary()
    assert len(report.pairs) >= 5


def test_half_precision_package_is_paired_with_its_single_precision_twin(
    small_net: torch.nn.Module, small_program: Any, small_input: np.ndarray, tmp_path: Path, convert: Any
) -> None:
    path = convert(small_net, (torch.from_numpy(small_input),), tmp_path / "half.mlpackage", half=True)
    report = against_program(Evaluator(load_package(path), "fp16"), Evaluator(small_program), {"x": small_input})
    assert report.first is None
    assert len(report.pairs) >= 6
    assert all(45 < pair.snr_db < 100 for pair in report.pairs)


def test_flipped_weight_bytes_are_located(
    small_package: Path, small_input: np.ndarray, small_program: Any, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_package, tmp_path / "copy.mlpackage"))
    file = copy / "Data/com.apple.CoreML/weights/weight.bin"
    damaged = bytearray(file.read_bytes())
    linear = np.asarray(next(op.weight.val for op in small_program.body.operations if op.op_type == "linear"))
    place = bytes(damaged).index(linear.tobytes())
    damaged[place : place + 400] = bytes(400)
    file.write_bytes(damaged)
    report = against_program(Evaluator(load_package(copy)), Evaluator(small_program), {"x": small_input})
    assert report.first is not None
    assert report.first.operator == "linear"


def test_programs_without_common_names(make_program: Any, small_program: Any) -> None:
    x = np.zeros((1, 3, 16, 16), np.float32)
    other = make_program(lambda x: mb.relu(x=x, name="something_else"), {"x": x})
    with pytest.raises(ParityError, match="counterpart"):
        against_program(Evaluator(other), Evaluator(small_program), {"x": x})


def test_folded_normalization_is_not_mistaken_for_a_fault(
    tmp_path: Path, convert: Any, small_input: np.ndarray
) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    )
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.2, 3)
    example = (torch.from_numpy(small_input),)
    program = load_package(convert(net, example, tmp_path / "folded.mlpackage"))
    (name,) = (spec.name for spec in program.inputs)
    report = against_exported(Evaluator(program), torch.export.export(net.eval(), example), {name: small_input})
    assert report.first is None
    assert report.pairs


def test_fault_in_a_small_branch_is_named_before_the_sum(make_program: Any) -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 5)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((4, 4, 1, 1)).astype(np.float32)

    def build(sign: float) -> Any:
        def body(x: Any) -> Any:
            branch = mb.conv(x=x, weight=weight * np.float32(0.1 * sign), pad_type="valid", name="branch")
            return mb.add(x=x, y=branch, name="sum")

        return make_program(body, {"x": x})

    report = against_program(Evaluator(build(-1.0)), Evaluator(build(1.0)), {"x": x})
    assert report.first is not None
    assert report.first.name == "branch"
