"""Images, classifiers and declared types at a package's border."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from edgeopt.core.errors import ArtifactError
from edgeopt.mil import Evaluator, load_package

LABELS = ["cat", "dog", "owl", "fox"]


class _Pixels(torch.nn.Module):
    """Distinguishes channels and positions, so that any mix-up of layout shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1))[:, :, ::2, :].sum(2)


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_image_layout_scale_and_bias(tmp_path: Path, convert: Any, trace: Any, colour: str) -> None:
    scale, bias = 1 / 127.5, [-1.0, -0.5, 0.25]
    path = convert(
        trace(_Pixels(), torch.zeros(1, 3, 4, 6)),
        (),
        tmp_path / "image.mlpackage",
        inputs=[ct.ImageType(name="image", shape=(1, 3, 4, 6), color_layout=colour, scale=scale, bias=bias)],
    )
    program = load_package(path)
    (spec,) = program.inputs
    assert (spec.shape, spec.dtype, spec.layout) == ((1, 4, 6, 3), "uint8", "NHWC")
    assert program.features[0].colour == colour
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3)).astype(np.uint8)
    planes = image.transpose(0, 3, 1, 2)
    planes = planes[:, ::-1] if colour == "BGR" else planes
    normal = planes.astype(np.float32) * np.float32(scale) + np.array(bias, np.float32).reshape(1, 3, 1, 1)
    expected = _Pixels()(torch.from_numpy(np.ascontiguousarray(normal))).numpy()
    evaluator = Evaluator(program)
    (value,) = evaluator({"image": image}).values()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    (same,) = evaluator({"image": np.ascontiguousarray(planes)}).values()
    np.testing.assert_array_equal(value, same)
    with pytest.raises(ArtifactError, match="input image"):
        evaluator({"image": image[:, :3]})


def test_grayscale_image(tmp_path: Path, convert: Any, trace: Any) -> None:
    class Invert(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 255.0 - x

    path = convert(
        trace(Invert(), torch.zeros(1, 1, 2, 3)),
        (),
        tmp_path / "gray.mlpackage",
        inputs=[ct.ImageType(name="image", shape=(1, 1, 2, 3), color_layout=ct.colorlayout.GRAYSCALE)],
        outputs=[ct.ImageType(name="negative", color_layout=ct.colorlayout.GRAYSCALE)],
    )
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1) * 40
    result = Evaluator(load_package(path))({"image": image})["negative"]
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, 255 - image)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: Any, convert: Any) -> Path:
    class Head(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1)

    return convert(
        Head(),
        (torch.zeros(1, 4),),
        tmp_path_factory.mktemp("classifier") / "classifier.mlpackage",
        classifier_config=ct.ClassifierConfig(LABELS),
    )


def test_classifier_gives_label_and_probabilities_in_order(classifier: Path) -> None:
    program = load_package(classifier)
    assert program.labels == tuple(LABELS)
    x = np.array([[0.1, 0.3, 2.0, -1.0]], np.float32)
    result = Evaluator(program)({"x": x})
    kinds = {f.spec.name: f.kind for f in program.results}
    label = next(result[name] for name, kind in kinds.items() if kind == "label")
    probabilities = next(result[name] for name, kind in kinds.items() if kind == "probabilities")
    assert label.tolist() == ["owl"]
    assert probabilities.shape == (1, 4)
    np.testing.assert_allclose(probabilities[0], torch.from_numpy(x[0]).softmax(-1).numpy(), rtol=1e-5)


def test_half_precision_border(tmp_path: Path, convert: Any) -> None:
    path = convert(
        torch.nn.ReLU(),
        (torch.zeros(1, 3),),
        tmp_path / "half.mlpackage",
        half=True,
        inputs=[ct.TensorType(name="x", shape=(1, 3), dtype=np.float16)],
        outputs=[ct.TensorType(name="y", dtype=np.float16)],
    )
    program = load_package(path)
    assert program.inputs[0].dtype == "float16"
    (value,) = Evaluator(program)({"x": np.array([[0.1, -2.0, 1e5]], np.float32)}).values()
    assert value.dtype == np.float16
    np.testing.assert_array_equal(value, np.array([[0.1, 0.0, np.inf]], np.float16))


def test_integer_input_refuses_floats(make_program: Any) -> None:
    from coremltools.converters.mil import mil

    program = make_program(lambda i: mil.Builder.add(x=i, y=np.int32(1)), {"i": np.zeros((2,), np.int32)})
    evaluator = Evaluator(program)
    (value,) = evaluator({"i": np.array([4, 5], np.int64)}).values()
    assert value.dtype == np.int32
    assert value.tolist() == [5, 6]
    with pytest.raises(ArtifactError, match="declared as int32, not float32"):
        evaluator({"i": np.zeros((2,), np.float32)})
