"""Three silent defects of coremltools 9.0: each is shown, and shown to be avoided or reported here.

When one of the first assertions of a test fails, coremltools has mended its part and the test may go.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil
from coremltools.models import MLModel
from coremltools.optimize.coreml.experimental._model_debugger import ModelDebugger

from edgeopt.mil import Evaluator, load_package, program_of, snr_db
from edgeopt.mil.divergence import against_program
from edgeopt.mil.ranges import Range, activation_ranges
from edgeopt.mil.weights import coverage

mb = mil.Builder
f32 = np.float32


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: Any, convert: Any) -> dict[str, Path]:
    """40 output channels, which groups of 16 do not divide; plain and palettized with a scale for each channel."""
    folder = tmp_path_factory.mktemp("uneven")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(16, 40, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 32, 3))
    paths = {"plain": folder / "plain.mlpackage", "palettized": folder / "palettized.mlpackage"}
    example = (torch.randn(1, 16, 8, 8),)
    convert(net, example, paths["plain"], minimum_deployment_target=ct.target.iOS18)
    config = cto.OpPalettizerConfig(
        mode="kmeans", nbits=4, weight_threshold=0, granularity="per_grouped_channel", group_size=16,
        enable_per_channel_scale=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's k-means
        model = cto.palettize_weights(
            MLModel(str(paths["plain"]), skip_model_load=True), cto.OptimizationConfig(global_config=config)
        )
    model.save(str(paths["palettized"]))
    return paths


def test_scaled_palettization_leaves_a_layer_without_its_scale_and_coverage_says_so(uneven: dict[str, Path]) -> None:
    twin, program = load_package(uneven["plain"]), load_package(uneven["palettized"])
    report = coverage(program, twin)
    broken, sound = report.layers
    # The weight was divided by its channels' scales, then not palettized, and not multiplied again.
    assert not broken.compressed
    assert broken.snr_db is not None
    assert broken.snr_db < 0
    assert report.damaged == (broken,)
    assert "40 output channels do not divide into groups of 16, 32" in broken.reason
    assert sound.compressed
    assert not sound.damaged


def test_scaled_palettization_is_located_in_the_network(uneven: dict[str, Path]) -> None:
    twin, program = load_package(uneven["plain"]), load_package(uneven["palettized"])
    (name,) = (spec.name for spec in program.inputs)
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(f32)
    report = against_program(Evaluator(program), Evaluator(twin), {name: x}, threshold_db=10.0)
    assert report.first is not None
    assert report.first.operator == "conv"
    assert report.pairs[0] == report.first


def _requantized(second_scale: float) -> Any:
    """Quantize, reshape, quantize: what a quantizer with observers on both sides of a reshape makes."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4, 6, 6))], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        def fake(value: Any, scale: float, name: str) -> Any:
            stored = mb.quantize(input=value, scale=f32(scale), zero_point=np.int8(0), output_dtype="int8")
            return mb.dequantize(input=stored, scale=f32(scale), zero_point=np.int8(0), name=name)

        turned = mb.reshape(x=fake(x, 0.1, "before"), shape=[1, 8, 3, 6], name="turned")
        return mb.mul(x=fake(turned, second_scale, "after"), y=f32(1.5), name="result")

    return program


def _converted(program: Any, path: Path) -> Any:
    model = ct.convert(
        program, minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32, skip_model_load=True
    )
    model.save(str(path))
    return load_package(path)


def test_requantize_around_a_reshape_is_lost_and_located(tmp_path: Path) -> None:
    source = _requantized(0.2)
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(f32) * 3
    twin = Evaluator(program_of(source))
    artifact = Evaluator(_converted(source, tmp_path / "lost.mlpackage"))
    # One quantize is left, and its integers are read with the other scale.
    assert [kind for kind, _ in artifact.steps] == ["quantize", "reshape", "dequantize", "mul"]
    (value,), (truth,) = artifact({"x": x}).values(), twin({"x": x}).values()
    assert snr_db(truth, value) < 1
    report = against_program(artifact, twin, {"x": x})
    assert report.first is not None
    assert report.first.name in ("after", "result")


def test_shared_scale_around_a_reshape_survives(tmp_path: Path) -> None:
    source = _requantized(0.1)
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(f32) * 3
    twin = Evaluator(program_of(source))
    artifact = Evaluator(_converted(source, tmp_path / "shared.mlpackage"))
    (value,), (truth,) = artifact({"x": x}).values(), twin({"x": x}).values()
    np.testing.assert_array_equal(value, truth)


def test_calibration_keeps_every_sample_where_coremltools_keeps_the_last(make_program: Any) -> None:
    wide, narrow = np.array([-100.0, 50.0], f32), np.array([-1.0, 2.0], f32)
    theirs: dict[str, dict[str, float]] = defaultdict(dict)
    for sample in (wide, narrow):
        ModelDebugger.record_intermediate_output(sample, "y", theirs)
    assert (theirs["y"]["rmin"], theirs["y"]["rmax"]) == (-1.0, 2.0)

    program = make_program(lambda x: mb.identity(x=x, name="y"), {"x": wide})
    ours = activation_ranges(Evaluator(program), [{"x": wide}, {"x": narrow}])
    assert ours["y"] == Range(-100.0, 50.0)
    assert ours["x"] == Range(-100.0, 50.0)
