"""Core ML packages are verified, inspected and located by the same commands as every other artifact."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NET = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
"""


@pytest.fixture(scope="module")
def bundle(edgeopt: Any, write_model: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A net's Core ML packages in fp32 and int8, its ONNX file, and the arguments that name it."""
    folder = tmp_path_factory.mktemp("packages")
    code = write_model("net", NET)
    arrays = np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=arrays)
    model = [f"{code}:build", "--input-shape", "1,3,16,16"]
    precisions = ["--precision", "fp32,static_wi8_ai8"]
    ran = edgeopt(
        "convert", *model, "--to", "coreml,onnx", *precisions, "--data", folder / "data.npz", "-o", folder / "out"
    )
    assert ran.code == 0, ran.err
    return folder / "out", model, folder / "data.npz"


def test_a_package_is_verified_against_its_model(edgeopt: Any, bundle: Any) -> None:
    out, model, data = bundle
    ran = edgeopt(
        "verify", out / "net-build.fp32.mlpackage", "--against", *model, "--data", data, "--samples", 8, "--json"
    )
    parity = ran.json["parity"]
    assert ran.code == 0
    assert parity["snr_db"] >= 100
    assert parity["runtime"] == "MIL reference evaluation"
    assert parity["inputs"] == "data"


def test_a_package_is_verified_against_an_onnx_file(edgeopt: Any, bundle: Any) -> None:
    out, _, _ = bundle
    package, original = out / "net-build.fp32.mlpackage", out / "net-build.fp32.onnx"
    ran = edgeopt("verify", package, "--against", original, "--samples", 4, "--json")
    assert ran.code == 0
    assert ran.json["parity"]["snr_db"] >= 100


@pytest.mark.filterwarnings("ignore")  # of coremltools, imported here to damage a package
def test_locating_names_the_operator_that_lost_the_signal(edgeopt: Any, bundle: Any, tmp_path: Path) -> None:
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    out, model, _ = bundle
    crushed = tmp_path / "crushed.mlpackage"
    package = ct.models.MLModel(str(out / "net-build.fp32.mlpackage"), skip_model_load=True)
    palette = cto.OpPalettizerConfig(mode="uniform", nbits=1, weight_threshold=0)
    cto.palettize_weights(package, cto.OptimizationConfig(global_config=palette)).save(str(crushed))
    ran = edgeopt("verify", crushed, "--against", *model, "--samples", 2, "--locate", 30, "--json")
    assert ran.code == 1
    first = ran.json["divergence"]["first"]
    assert first["operator"] in ("conv", "clip", "relu6")  # the first layer, whose batch normalization is folded
    assert first["snr_db"] < 30
    assert "below" in ran.json["divergence"]["summary"]


def test_a_sound_quantized_package_has_no_divergence(edgeopt: Any, bundle: Any) -> None:
    out, model, data = bundle
    package = out / "net-build.static_wi8_ai8.mlpackage"
    ran = edgeopt("verify", package, "--against", *model, "--data", data, "--samples", 4, "--locate", 15, "--json")
    assert ran.code == 0
    assert ran.json["divergence"]["first"] is None
    assert ran.json["divergence"]["compared"] >= 3


def test_locating_is_for_packages(edgeopt: Any, bundle: Any) -> None:
    out, model, _ = bundle
    ran = edgeopt("verify", out / "net-build.fp32.onnx", "--against", *model, "--samples", 1, "--locate", 30)
    assert ran.code == 2
    assert "Core ML" in ran.error


def test_inspect_counts_what_is_compressed(edgeopt: Any, bundle: Any) -> None:
    out, _, _ = bundle
    plain = edgeopt("inspect", out / "net-build.fp32.mlpackage", "--json").json
    small = edgeopt("inspect", out / "net-build.static_wi8_ai8.mlpackage", "--json").json
    assert plain["macs"] == small["macs"] > 0
    assert "int8" in small["weights_by_dtype"]
    assert "int8" not in plain["weights_by_dtype"]


def test_a_damaged_package_is_one_line(edgeopt: Any, bundle: Any, tmp_path: Path) -> None:
    out, model, _ = bundle
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(out / "net-build.fp32.mlpackage", broken)
    spec = next(broken.rglob("*.mlmodel"))
    spec.write_bytes(spec.read_bytes()[:100])
    for command in (["verify", broken, "--against", *model], ["inspect", broken]):
        ran = edgeopt(*command)
        assert ran.code == 1
        assert "broken.mlpackage" in ran.error
