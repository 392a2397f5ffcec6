"""Keras files and SavedModels made to harm or broken on the way: one clear line each, nothing runs, nothing hangs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core.errors import EdgeoptError, SourceError, UnsafeFileError
from edgeopt.worker import Limits, Worker

h5py = pytest.importorskip("h5py", reason="needs the extra tf: h5py reads Keras files")

from edgeopt.sources import keras_files  # noqa: E402 - it needs h5py

needs_tensorflow = pytest.mark.skipif(
    any(find_spec(p) is None for p in ("tensorflow", "keras", "tf2onnx")),
    reason="needs the extra tf: tensorflow, keras, tf2onnx",
)


def _layer(name: str, module: str | None = "keras.layers", **config: object) -> dict[str, object]:
    return {"module": module, "class_name": name, "config": {"name": "layer", **config}, "registered_name": None}


def _configuration(*layers: dict[str, object]) -> dict[str, object]:
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "m", "layers": list(layers)}}


def _weights(**datasets: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in (datasets or {"kernel": np.ones((2, 2), np.float32)}).items():
            file[f"layers/dense/vars/{name}"] = array
    return buffer.getvalue()


def _keras(path: Path, configuration: object = None, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(configuration or _configuration(_layer("Dense", units=2))))
        archive.writestr("model.weights.h5", _weights())
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _h5(path: Path, configuration: object = None) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(configuration or _configuration(_layer("Dense", units=2)))
        file["model_weights/dense/kernel:0"] = np.ones((2, 2), np.float32)
    return path


def _refusal(path: Path, kind: type[EdgeoptError] = SourceError, trust: bool = False) -> str:
    with pytest.raises(kind) as caught:
        keras_files.check(path=str(path), trust=trust)
    told = str(caught.value)
    assert "\n" not in told
    assert path.name in told
    return told


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_plain_files_pass(tmp_path):
    assert keras_files.check(path=str(_keras(tmp_path / "m.keras")), trust=False) == "keras"
    assert keras_files.check(path=str(_h5(tmp_path / "m.h5")), trust=False) == "h5"


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + b"\xff" * 200, b"{}"]
)
def test_what_is_no_model_is_told(tmp_path, suffix, content):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    _refusal(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_pickle_is_not_read(tmp_path, suffix):
    mark, path = tmp_path / "mark", tmp_path / f"m{suffix}"
    path.write_bytes(pickle.dumps(_Bomb(mark)))
    assert "neither an HDF5 file nor a zip" in _refusal(path)
    assert not mark.exists()


def test_a_wrong_extension_is_told(tmp_path):
    assert "rename it to m.keras" in _refusal(_keras(tmp_path / "m.keras").rename(tmp_path / "m.h5"))
    assert "rename it to m.h5" in _refusal(_h5(tmp_path / "n.h5").rename(tmp_path / "m.keras"))


@pytest.mark.parametrize("make", [_keras, _h5])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_told(tmp_path, make, share):
    path = make(tmp_path / ("m.keras" if make is _keras else "m.h5"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    _refusal(path)


def test_a_flipped_bit_in_an_archive_is_found_by_its_checksum(tmp_path):
    path = _keras(tmp_path / "m.keras")
    content = bytearray(path.read_bytes())
    content[content.index(b"Sequential")] ^= 1
    path.write_bytes(content)
    assert "checksum" in _refusal(path)


@pytest.mark.parametrize("layer", [
    _layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}),
    _layer("Lambda", module=None, function=["4wEAAAA=", None, None], function_type="lambda"),
    _layer("TFOpLambda", function="io.write_file"),
    _layer("TorchModuleWrapper", module="keras.layers"),
    _layer("TFSMLayer", filepath="/tmp/other"),
    _layer("JaxLayer"),
    _layer("StringLookup", vocabulary="/etc/passwd"),
    _layer("TextVectorization", vocabulary="/etc/passwd"),
    _layer("system", module="os"),
    _layer("Popen", module="subprocess"),
    _layer("Dense", module="keras.layers; import os"),
    _layer("Dense", units=2, activation={"module": "keras.utils", "class_name": "function", "config": "get_file"}),
    _layer("Dense", units=2, activation={"module": "builtins", "class_name": "function", "config": "eval"}),
    _layer("Dense", units=2, initializer={"class_name": "__lambda__", "config": {"value": "4wEAAAA="}}),
    {"class_name": "Custom>Lambda", "config": {}},
])  # fmt: skip
@pytest.mark.parametrize("make", [_keras, _h5])
def test_what_could_run_code_needs_trust(tmp_path, make, layer):
    path = make(tmp_path / ("m.keras" if make is _keras else "m.h5"), _configuration(layer))
    assert "--trust-source allows it" in _refusal(path, UnsafeFileError)
    keras_files.check(path=str(path), trust=True)


@pytest.mark.parametrize(
    "name", ["../out.h5", "/etc/out", "a/../../out", "..\\out", "data.pkl", "assets/x.so", "code.py"]
)
def test_members_that_no_model_needs_are_refused(tmp_path, name):
    _refusal(_keras(tmp_path / "m.keras", None, **{name: b"x"}), UnsafeFileError)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own
def test_two_members_of_one_name_are_refused(tmp_path):
    path = _keras(tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    assert "two files of one name" in _refusal(path)


@pytest.mark.parametrize("configuration", [
    [], "text", 3, {"config": {}}, _configuration(_layer("Dense", units=2**40)),
    _configuration({"class_name": "InputLayer", "config": {"batch_shape": [None, 10**12, 3]}}),
])  # fmt: skip
def test_configurations_that_are_none_are_told(tmp_path, configuration):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(configuration))
        archive.writestr("model.weights.h5", _weights())
    _refusal(path)


def test_a_configuration_nested_without_end_is_told(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", '{"class_name": ' + "[" * 100_000)
        archive.writestr("model.weights.h5", _weights())
    _refusal(path)


def test_archives_that_unpack_to_more_than_a_model_are_refused(tmp_path):
    path = _keras(tmp_path / "declared.keras")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.weights.h5"))
    content[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")  # uncompressed size in the directory
    path.write_bytes(content)
    assert "to 4294967280 bytes; no weights do" in _refusal(path)
    path = tmp_path / "zeros.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(_configuration()))
        archive.writestr("model.weights.h5", bytes(2**25))
    assert path.stat().st_size < 2**16
    assert "to 33554432 bytes; no weights do" in _refusal(path)


def test_weights_that_unpack_to_more_than_a_model_are_refused(tmp_path):
    path = _h5(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("model_weights/bomb", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")
    assert path.stat().st_size < 2**20
    assert "unpacks to more than 8 GiB" in _refusal(path)


@pytest.mark.parametrize("link", ["external", "soft", "storage", "virtual"])
def test_weights_of_another_file_are_refused(tmp_path, link):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(4, np.float32)
    path = _h5(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        group = file["model_weights"]
        if link == "external":
            group["x"] = h5py.ExternalLink(str(other), "secret")
        elif link == "soft":
            group["x"] = h5py.SoftLink("/model_weights/dense")
        elif link == "storage":
            group.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
            group.create_virtual_dataset("x", layout)
    _refusal(path, UnsafeFileError)


def test_groups_that_hold_themselves_end(tmp_path):
    path = _h5(tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        file["model_weights/again"] = file["model_weights"]
    assert "nest deeper" in _refusal(path)


def test_weights_without_a_model_are_told(tmp_path):
    path = tmp_path / "m.h5"
    path.write_bytes(_weights())
    assert "save the whole model" in _refusal(path)


BUILD = """
import sys
import keras
import tensorflow as tf
from pathlib import Path

out = Path(sys.argv[1])
image = keras.layers.Input((8, 8, 1), name="image")
x = keras.layers.Conv2D(4, 3, activation="relu")(image)
model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
model.save(out / "m.keras")
model.save(out / "m.h5")
model.export(str(out / "saved"), verbose=False)

mark = str(out / "mark")


def touch(x):
    Path(mark).touch()
    return x


class Evil(tf.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32)])
    def serve(self, x):
        if self.kind == "py_function":
            return tf.ensure_shape(tf.py_function(touch, [x], tf.float32), [1, 4])
        if self.kind == "write":
            with tf.control_dependencies([tf.io.write_file(mark, "x")]):
                return tf.identity(x)
        if self.kind == "read":
            return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)
        if self.kind == "print":
            tf.print(x)
        return x


for kind in ("py_function", "write", "read", "print"):
    evil = Evil(kind)
    tf.saved_model.save(evil, str(out / kind), signatures=evil.serve)

lambdas = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
lambdas.save(out / "lambda.keras")
lambdas.save(out / "lambda.h5")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow", "KERAS_HOME": str(folder)}
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, env=environment, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory):
    """A worker with TensorFlow imported; `convert(path)` checks and converts a model in it."""
    folder = tmp_path_factory.mktemp("worker")
    environment = {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow", "KERAS_HOME": str(folder / "keras")}

    with Worker(environment=environment, limits=Limits(240.0, 8 * 2**30)) as worker:

        def convert(path: Path, trust: bool = False) -> None:
            kind = "saved_model" if path.is_dir() else keras_files.check(path=str(path), trust=trust)
            arguments = {"path": str(path), "kind": kind, "shapes": [], "named_shapes": {}, "trust": trust,
                         "out": str(folder / "out.onnx")}  # fmt: skip
            worker.call("edgeopt.sources.keras_to_onnx:convert", arguments, what="conversion", log=folder / "log",
                        failure=SourceError)  # fmt: skip

        yield convert


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["py_function", "write", "read", "print"])
def test_operators_that_reach_outside_are_refused(built, tensorflow, kind):
    with pytest.raises(UnsafeFileError, match=r"operator \w+ at .* could read files or run code") as caught:
        tensorflow(built / kind)
    assert "\n" not in str(caught.value)
    assert not (built / "mark").exists()


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lambdas_of_keras_itself_are_refused_unless_trusted(built, tensorflow):
    for name in ("lambda.keras", "lambda.h5"):
        with pytest.raises(UnsafeFileError, match="a Lambda layer"):
            tensorflow(built / name)
    tensorflow(built / "lambda.keras", trust=True)


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_links_in_a_saved_model_are_refused(built, tensorflow, tmp_path):
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    for place in (built / "saved").rglob("*"):
        if place.is_file() and "variables" in place.name:
            (folder / "variables" / place.name).symlink_to(place)
    (folder / "saved_model.pb").write_bytes((built / "saved" / "saved_model.pb").read_bytes())
    with pytest.raises(UnsafeFileError, match="is a link"):
        tensorflow(folder)


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_damage_anywhere_is_one_line_or_harmless(built, tensorflow, tmp_path, name):
    source = built / name
    files = [f for f in source.rglob("*") if f.is_file()] if source.is_dir() else [source]
    generator = random.Random(0)
    failures = 0
    for case in range(100):
        victim = generator.choice(files)
        content = bytearray(victim.read_bytes())
        if case % 2:
            del content[generator.randrange(len(content)) :]
        else:
            for _ in range(generator.choice([1, 8, 64])):
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        target = tmp_path / f"{case}" / name
        for file in files:
            place = target if file == source else target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bytes(content) if file == victim else file.read_bytes())
        try:
            tensorflow(target)
        except EdgeoptError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures >= 30
