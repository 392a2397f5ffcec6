"""Opening packages: what they declare, and what is wrong with damaged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import ArtifactError, EdgeoptError, UnsupportedOpError
from edgeopt.mil import Evaluator, load_package
from edgeopt.mil.integrity import seal

DATA = Path("Data/com.apple.CoreML")


@pytest.fixture
def package(small_package: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_package, tmp_path / "copy.mlpackage"))


def _edit_spec(package: Path, change: Callable[[Any], None]) -> None:
    file = package / DATA / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    change(spec)
    file.write_bytes(spec.SerializeToString())


def test_border_is_what_the_package_declares(small_program: Any) -> None:
    (given_input,), (result,) = small_program.inputs, small_program.outputs
    assert (given_input.name, given_input.shape, given_input.dtype) == ("x", (1, 3, 16, 16), "float32")
    assert (result.shape, result.dtype) == ((1, 48), "float32")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_specification(package: Path, keep: float) -> None:
    file = package / DATA / "model.mlmodel"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match="truncated"):
        load_package(package)


@pytest.mark.parametrize("keep", [0, 64, 1000, 0.5, 0.999])
def test_truncated_weights(package: Path, keep: float) -> None:
    file = package / DATA / "weights/weight.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match="truncated"):
        load_package(package)


def test_missing_weight_file(package: Path) -> None:
    (package / DATA / "weights/weight.bin").unlink()
    with pytest.raises(ArtifactError, match=r"weight\.bin, which is missing"):
        load_package(package)


def test_missing_weights_folder(package: Path) -> None:
    shutil.rmtree(package / DATA / "weights")
    with pytest.raises(ArtifactError, match="not in the package"):
        load_package(package)


@pytest.mark.parametrize("name", ["Manifest.json", "Data"])
def test_missing_parts(package: Path, name: str) -> None:
    part = package / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(ArtifactError):
        load_package(package)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"itemInfoEntries": {}}', '{"itemInfoEntries": {"a": 3}}'])
def test_damaged_manifest(package: Path, text: str) -> None:
    (package / "Manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        load_package(package)


@pytest.mark.parametrize(
    "escape", ["../../outside.mlmodel", "/etc/passwd", "com.apple.CoreML/../../../outside.mlmodel"]
)
def test_manifest_path_outside_the_package(package: Path, escape: str) -> None:
    (package.parent / "outside.mlmodel").write_bytes(b"")
    manifest = package / "Manifest.json"
    record = json.loads(manifest.read_text())
    record["itemInfoEntries"][record["rootModelIdentifier"]]["path"] = escape
    manifest.write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="outside the package"):
        load_package(package)


def test_linked_weights_outside_the_package(package: Path) -> None:
    file = package / DATA / "weights/weight.bin"
    outside = package.parent / "elsewhere.bin"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(ArtifactError, match="outside the package"):
        load_package(package)


def test_linked_specification_outside_the_package(package: Path) -> None:
    file = package / DATA / "model.mlmodel"
    outside = package.parent / "elsewhere.mlmodel"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(ArtifactError, match="outside the package"):
        load_package(package)


def test_weight_file_name_outside_the_package(package: Path) -> None:
    def change(spec: Any) -> None:
        for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
            for value in op.attributes.values():
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/../../../../etc/passwd"

    _edit_spec(package, change)
    with pytest.raises(ArtifactError, match="outside the package"):
        load_package(package)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), value=st.integers(1, 255))
def test_sealed_package_notices_every_flipped_byte(package: Path, place: int, value: int) -> None:
    file = package / DATA / "weights/weight.bin"
    seal(package)
    assert load_package(package).sealed
    whole = bytearray(file.read_bytes())
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= value
    file.write_bytes(damaged)
    try:
        with pytest.raises(ArtifactError, match="not the one it was sealed with"):
            load_package(package)
    finally:
        file.write_bytes(whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), value=st.integers(1, 255))
def test_flipped_specification_byte_is_an_error_of_ours_or_harmless(
    package: Path, small_program: Any, small_input: np.ndarray, place: int, value: int
) -> None:
    file = package / DATA / "model.mlmodel"
    whole = bytearray(file.read_bytes())
    damaged = bytearray(whole)
    damaged[place % len(whole)] ^= value
    file.write_bytes(damaged)
    try:
        results = list(Evaluator(load_package(package))({"x": small_input}).values())
    except EdgeoptError:
        return
    finally:
        file.write_bytes(whole)
    assert [result.shape for result in results] == [(1, 48)]


def test_flipped_blob_headers_are_noticed_without_a_seal(package: Path) -> None:
    file = package / DATA / "weights/weight.bin"
    whole = bytearray(file.read_bytes())
    start = 64  # the first blob's metadata: marker, type, length, offset
    for position in (start, start + 4, start + 8, start + 18):
        damaged = bytearray(whole)
        damaged[position] ^= 0x5A
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"damaged|truncated"):
            load_package(package)


def test_seal_leaves_the_program_as_it_is(package: Path, small_program: Any, small_input: np.ndarray) -> None:
    seal(package)
    seal(package)
    (sealed,) = Evaluator(load_package(package))({"x": small_input}).values()
    (plain,) = Evaluator(small_program)({"x": small_input}).values()
    np.testing.assert_array_equal(sealed, plain)


def test_a_sealed_package_that_coremltools_changed_and_saved_again_is_not_damaged(
    package: Path, tmp_path: Path, small_input: np.ndarray
) -> None:
    seal(package)
    palette = cto.OptimizationConfig(global_config=cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0))
    model = ct.models.MLModel(str(package), skip_model_load=True)
    again = tmp_path / "again.mlpackage"
    cto.palettize_weights(model, palette).save(str(again))
    program = load_package(again)
    assert not program.sealed, "the seal is of another program"
    assert Evaluator(program)({"x": small_input})


def test_a_sealed_package_that_coremltools_only_copied_stays_sealed(package: Path, tmp_path: Path) -> None:
    seal(package)
    again = tmp_path / "again.mlpackage"
    model = ct.models.MLModel(str(package), skip_model_load=True)
    model.short_description = "a copy"
    model.save(str(again))
    assert load_package(again).sealed


def test_a_changed_program_makes_the_seal_stale(package: Path) -> None:
    def change(spec: Any) -> None:
        for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
            if op.type == "linear":
                op.attributes["name"].immediateValue.tensor.strings.values[0] = "renamed"

    seal(package)
    assert load_package(package).sealed
    _edit_spec(package, change)
    assert not load_package(package).sealed


def test_neural_network_is_refused_by_name(tmp_path: Path) -> None:
    builder = ct.models.neural_network.NeuralNetworkBuilder(
        [("x", ct.models.datatypes.Array(3))], [("y", ct.models.datatypes.Array(3))]
    )
    builder.add_activation("act", "RELU", "x", "y")
    path = tmp_path / "old.mlpackage"
    ct.models.MLModel(builder.spec, skip_model_load=True).save(str(path))
    with pytest.raises(UnsupportedOpError, match=r"neuralNetwork .*mlprogram"):
        load_package(path)


def test_unknown_operator_is_named_with_its_place(package: Path) -> None:
    def change(spec: Any) -> None:
        for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
            if op.type == "max_pool":
                op.type = "fractal_pool"

    _edit_spec(package, change)
    with pytest.raises(UnsupportedOpError, match=r"operator fractal_pool at main/max_pool2d.* in "):
        load_package(package)


def test_program_that_contradicts_itself(package: Path) -> None:
    def change(spec: Any) -> None:
        for op in spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations:
            if op.type == "linear":
                op.outputs[0].type.tensorType.dimensions[1].constant.size = 47

    _edit_spec(package, change)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_package(package)


def test_missing_file_and_plain_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.mlpackage", tmp_path):
        with pytest.raises(ArtifactError, match=r"is not an \.mlpackage"):
            load_package(path)


def test_output_that_the_program_does_not_make(package: Path) -> None:
    def change(spec: Any) -> None:
        spec.description.output[0].name = "something_else"

    _edit_spec(package, change)
    with pytest.raises(ArtifactError, match="something_else"):
        load_package(package)


def test_multi_outputs_keep_names_and_order(tmp_path: Path, convert: Any) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x.sum(1)

    names = [ct.TensorType(name="doubled"), ct.TensorType(name="total")]
    path = convert(Two(), (torch.zeros(2, 3),), tmp_path / "two.mlpackage", outputs=names)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = Evaluator(load_package(path))({"x": x})
    assert list(result) == ["doubled", "total"]
    np.testing.assert_allclose(result["total"], x.sum(1))
