"""Keras and TensorFlow models: the same numbers, the names, shapes and layout of their own inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import MissingBackendError, SourceError, UsageError
from edgeopt.sources.request import understand

needs_tensorflow = pytest.mark.skipif(
    any(find_spec(p) is None for p in ("tensorflow", "keras", "tf2onnx", "h5py")),
    reason="needs the extra tf: tensorflow, keras, tf2onnx",
)
MODELS = Path(__file__).parents[3] / "shared" / "models" / "mlperf-tiny"

BUILD = """
import json, sys
import keras, numpy as np
import tensorflow as tf
from pathlib import Path

out = Path(sys.argv[1])
keras.utils.set_random_seed(0)
L = keras.layers


def trained(model):
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            n = layer.moving_mean.shape
            layer.moving_mean.assign(np.random.normal(0, 0.3, n))
            layer.moving_variance.assign(np.random.uniform(0.5, 1.5, n))
    return model


image = L.Input((24, 20, 3), name="photo")
x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
x = L.BatchNormalization()(x)
x = L.ReLU(6.0)(x)
x = L.DepthwiseConv2D(3, padding="same")(x)
x = L.Activation("hard_swish")(x)
x = L.ZeroPadding2D(((0, 1), (1, 0)))(x)
x = L.UpSampling2D(2, interpolation="bilinear")(x)
x = L.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
x = L.LeakyReLU()(x)
x = L.GlobalAveragePooling2D()(x)
vision = trained(keras.Model(image, L.Dense(4, activation="softmax", name="scores")(x)))

words = L.Input((7,), dtype="int32", name="tokens")
mask = L.Input((7, 5), name="features")
y = L.Concatenate()([L.Embedding(11, 6)(words), mask])
y = L.Bidirectional(L.LSTM(4, return_sequences=True))(y)
y = L.GRU(5)(L.LayerNormalization()(y))
text = keras.Model([words, mask], [L.Dense(3, name="tag")(y), L.Dense(1, name="score")(y)])

open_size = L.Input((None, None, 3), name="any_size")
anysize = keras.Model(open_size, L.Conv2D(2, 3, padding="same", name="map")(open_size))

groups = L.Input((8, 8, 4), name="old")
old = keras.Model(groups, L.DepthwiseConv2D(3, name="depthwise")(groups))


def samples(name, model, shapes=None):
    random = np.random.default_rng(0)
    arrays = []
    for i, tensor in enumerate(model.inputs):
        shape = shapes[i] if shapes else (1, *tensor.shape[1:])
        integers = "int" in str(tensor.dtype)
        arrays.append(random.integers(0, 11, shape).astype("int32") if integers
                      else random.normal(size=shape).astype("float32"))
    results = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    results = results if isinstance(results, (list, tuple)) else [results]
    np.savez(out / f"{name}.npz", **{f"in{i}": a for i, a in enumerate(arrays)},
             **{f"out{i}": np.asarray(r) for i, r in enumerate(results)})


for name, model in (("vision", vision), ("text", text)):
    samples(name, model)
    model.save(out / f"{name}.keras")
vision.save(out / "vision.h5")
vision.export(str(out / "vision_saved_model"), verbose=False)
samples("anysize", anysize, [(1, 9, 6, 3)])
anysize.save(out / "anysize.keras")
samples("old", old)
old.save(out / "old.h5")



def layers(first):
    rest = [L.Conv2D(4, 3, strides=2, name="conv"), L.BatchNormalization(), L.Flatten(), L.Dense(3, name="scores")]
    return [*first, *rest]


backbone = keras.Sequential([L.Input((6, 5, 3), name="inner"), L.Conv2D(4, 3)])
sequential = {
    "input": keras.Sequential(layers([keras.Input((8, 7, 3), name="picture")])),
    "layer": keras.Sequential(layers([L.InputLayer(shape=(8, 7, 3), name="picture")])),
    "added": keras.Sequential(),
    "built": keras.Sequential(layers([])),
    "nested": keras.Sequential(
        [keras.Input((6, 5, 3), name="picture"), backbone, L.Flatten(), L.Dense(3, name="scores")]
    ),
    "shape": keras.Sequential([L.Conv2D(4, 3, input_shape=(8, 7, 3)), L.Flatten(), L.Dense(3, name="scores")]),
}
for layer in layers([keras.Input((8, 7, 3), name="picture")]):
    sequential["added"].add(layer)
sequential["built"].build((None, 8, 7, 3))
for name, model in sequential.items():
    samples(f"sequential_{name}", trained(model))
    model.save(out / f"sequential_{name}.keras")
    model.save(out / f"sequential_{name}.h5")
no_input = keras.Sequential(layers([]))
no_input.save(out / "no_input.keras")

import h5py
with h5py.File(out / "sequential_shape.h5") as source, h5py.File(out / "sequential_2020.h5", "w") as file:
    for name in source:
        source.copy(name, file)
    file.attrs.update(source.attrs)
    configuration = json.loads(file.attrs["model_config"])
    kept = [layer for layer in configuration["config"]["layers"] if layer["class_name"] != "InputLayer"]
    kept[0]["config"]["batch_input_shape"] = [None, 8, 7, 3]
    configuration["config"] = {"name": "sequential", "layers": kept}
    file.attrs["model_config"] = json.dumps(configuration)
with h5py.File(out / "old.h5", "a") as file:
    configuration = json.loads(file.attrs["model_config"])
    for layer in configuration["config"]["layers"]:
        if layer["class_name"] == "DepthwiseConv2D":
            layer["config"]["groups"] = 1
    file.attrs["model_config"] = json.dumps(configuration)
"""


def _snr_db(reference: np.ndarray, result: np.ndarray) -> float:
    reference, result = reference.astype(np.float64), result.astype(np.float64)
    error = np.square(reference - result).sum()
    return float("inf") if error == 0 else float(10 * np.log10(np.square(reference).sum() / error))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Models saved by Keras in a process of its own, with inputs and outputs of theirs."""
    folder = tmp_path_factory.mktemp("keras")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow", "KERAS_HOME": str(folder)}
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], check=True, env=environment, capture_output=True)
    return folder


def _load(source: Path, **options):
    from edgeopt.sources import from_keras

    return from_keras.load(understand(str(source), **options))


def _check(loaded, samples: Path) -> None:
    stored = np.load(samples)
    inputs = [torch.from_numpy(stored[f"in{i}"]) for i in range(len(loaded.inputs))]
    with torch.no_grad():
        results = loaded.module(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    assert sum(k.startswith("out") for k in stored) == len(results) == len(loaded.outputs)
    for index, result in enumerate(results):
        assert _snr_db(stored[f"out{index}"], result.numpy()) >= 100


def test_a_missing_tensorflow_names_its_extra(monkeypatch, tmp_path):
    from edgeopt.sources import from_keras

    path = tmp_path / "model.keras"
    path.write_bytes(b"PK")
    monkeypatch.setattr(from_keras, "find_spec", lambda name: None)
    with pytest.raises(MissingBackendError, match=r"edgeopt\[tf\]"):
        _load(path)


def test_what_is_keras_is_told_by_name(tmp_path):
    for name in ("a.keras", "b.h5", "c.HDF5"):
        (tmp_path / name).touch()
        assert understand(str(tmp_path / name)).kind == "keras"
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        understand(str(folder))
    (folder / "saved_model.pb").touch()
    for name in (folder, folder / "saved_model.pb"):
        request = understand(str(name))
        assert (request.kind, Path(request.location)) == ("keras", folder)


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["vision.keras", "vision.h5", "vision_saved_model"])
def test_a_vision_model_in_every_container(built, name):
    loaded = _load(built / name)
    _check(loaded, built / "vision.npz")
    (spec,) = loaded.inputs
    assert (spec.shape, spec.dtype, spec.layout) == ((1, 24, 20, 3), "float32", "NHWC")
    assert "photo" in spec.name or name.endswith("saved_model")
    kinds = {type(m) for m in loaded.module.modules()}
    assert {nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.ReLU6} <= kinds


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recurrent_layers_and_several_inputs(built):
    loaded = _load(built / "text.keras")
    _check(loaded, built / "text.npz")
    assert [(s.name, s.shape, s.dtype) for s in loaded.inputs] == [
        ("tokens", (1, 7), "int32"), ("features", (1, 7, 5), "float32"),
    ]  # fmt: skip
    assert loaded.outputs == ("tag", "score")
    assert {nn.LSTM, nn.Embedding, nn.LayerNorm} <= {type(m) for m in loaded.module.modules()}


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "container"),
    [("input", "keras"), ("layer", "h5"), ("added", "h5"), ("built", "keras"), ("nested", "keras"), ("shape", "h5")],
)
def test_sequential_models_however_they_tell_their_input(built, name, container):
    loaded = _load(built / f"sequential_{name}.{container}")
    _check(loaded, built / f"sequential_{name}.npz")
    (spec,) = loaded.inputs
    assert (spec.shape[-1], spec.layout, loaded.outputs) == (3, "NHWC", ("scores",))
    assert spec.name == "picture" or name in ("built", "shape")


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sequential_model_of_2020_and_one_that_was_never_built(built):
    _check(_load(built / "sequential_2020.h5"), built / "sequential_shape.npz")  # batch_input_shape in its first layer
    with pytest.raises(SourceError, match="does not tell its inputs; build it with an Input layer"):
        _load(built / "no_input.keras")


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_open_dimensions_are_asked_for_and_old_files_load(built):
    with pytest.raises(UsageError, match="its shape N,N,N,3 is not fixed; give --input-shape"):
        _load(built / "anysize.keras")
    with pytest.raises(UsageError, match=r"the shape \[1, 9, 6, 4\] does not fit its own, N,N,N,3"):
        _load(built / "anysize.keras", shapes=((1, 9, 6, 4),))
    loaded = _load(built / "anysize.keras", shapes=((1, 9, 6, 3),))
    assert loaded.shaped
    assert loaded.inputs[0].layout == "NHWC"
    _check(loaded, built / "anysize.npz")
    _check(_load(built / "old.h5"), built / "old.npz")  # of 2020, with groups in a DepthwiseConv2D


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "shape", "layout", "layers"), [
    ("resnet8_cifar10.h5", (1, 32, 32, 3), "NHWC", 10),
    ("anomaly_autoencoder.h5", (1, 640), "", 10),
    ("kws_saved_model", (1, 49, 10, 1), "NHWC", 10),
])  # fmt: skip
def test_mlperf_tiny(tmp_path, name, shape, layout, layers):
    if not (MODELS / name).exists():
        pytest.skip(f"{MODELS / name} is absent")
    from edgeopt.sources.from_keras import in_worker

    arguments = {"shapes": [], "named_shapes": {}, "trust": False, "out": str(tmp_path / "m.onnx"),
                 "samples": str(tmp_path / "samples.npz")}  # fmt: skip
    record = in_worker(MODELS / name, arguments, tmp_path)
    assert json.loads(json.dumps(record)) == record
    loaded = _load(MODELS / name)
    (spec,) = loaded.inputs
    assert (spec.shape, spec.layout) == (shape, layout)
    stored = np.load(tmp_path / "samples.npz")
    with torch.no_grad():
        result = loaded.module(torch.from_numpy(stored["input_0"])).numpy()
    assert _snr_db(stored["output_0"], result) >= 100
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in loaded.module.modules()) == layers
