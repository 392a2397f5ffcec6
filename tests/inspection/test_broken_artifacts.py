from __future__ import annotations

import json
import random
import shutil

import pytest

from edgeopt.core.errors import ArtifactError

SINGLE_FILES = {"onnx": "onnx_file", "litert": "litert_file", "executorch": "executorch_file"}


def one_line(error: Exception) -> bool:
    return len(str(error).splitlines()) == 1


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_truncated_anywhere(request, inspectors, tmp_path, name):
    data = request.getfixturevalue(SINGLE_FILES[name]).read_bytes()
    path = tmp_path / "cut"
    lengths = {*range(64), *range(0, len(data), max(len(data) // 150, 1)), *range(len(data) - 16, len(data))}
    whole = inspectors[name](request.getfixturevalue(SINGLE_FILES[name])).to_json()
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        try:
            found = inspectors[name](path).to_json()
        except ArtifactError as error:
            assert one_line(error)
            assert "cut" in str(error)
        else:  # only padding is missing: everything that the file says is still there
            assert len(data) - length <= 64
            assert {**found, "size_bytes": 0} == {**whole, "size_bytes": 0}


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_flipped_bytes_never_raise_anything_else(request, inspectors, tmp_path, name):
    data = request.getfixturevalue(SINGLE_FILES[name]).read_bytes()
    path = tmp_path / "flipped"
    generator = random.Random(0)
    structure = [i for i in range(len(data)) if i < 3000 or generator.random() < 0.2]
    refused = 0
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 1, 3, 20])):
            broken[generator.choice(structure)] = generator.randrange(256)
        path.write_bytes(broken)
        try:
            inspectors[name](path)
        except ArtifactError as error:
            assert one_line(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", SINGLE_FILES)
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello", b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\x03\x04"])
def test_another_kind_of_file(inspectors, tmp_path, name, content):
    path = tmp_path / "wrong"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="wrong"):
        inspectors[name](path)


@pytest.mark.parametrize("name", ["onnx", "litert", "executorch", "coreml"])
def test_missing_file(inspectors, tmp_path, name):
    with pytest.raises(ArtifactError):
        inspectors[name](tmp_path / "nowhere")


@pytest.mark.parametrize("inner", ["model.mlmodel", "weights/weight.bin", "Manifest.json"])
def test_damaged_core_ml_package(inspectors, coreml_package, tmp_path, inner):
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(coreml_package, broken)
    target = broken / inner if inner == "Manifest.json" else broken / "Data" / "com.apple.CoreML" / inner
    data = target.read_bytes()
    generator = random.Random(0)
    refused = 0
    cut = [data[:length] for length in range(0, len(data), max(len(data) // 60, 1))]
    flipped = []
    for _ in range(150):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] = generator.randrange(256)
        flipped.append(bytes(damaged))
    for content in (*cut, *flipped):
        target.write_bytes(content)
        try:
            inspectors["coreml"](broken)
        except ArtifactError as error:
            assert one_line(error)
            refused += 1
    assert refused >= len(cut) - 1
    target.unlink()
    with pytest.raises(ArtifactError):
        inspectors["coreml"](broken)


@pytest.mark.parametrize("place", ["../../secret", "/etc/passwd", "a/../../../b"])
def test_core_ml_manifest_cannot_point_outside(inspectors, coreml_package, tmp_path, place):
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(coreml_package, broken)
    manifest = json.loads((broken / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = place
    (broken / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside the package"):
        inspectors["coreml"](broken)
