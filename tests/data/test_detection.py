"""Images with boxes: both kinds of files give the same truth, and what is wrong in one is told with its place."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core.card import ModelCard, Preprocess
from edgeopt.core.errors import DataError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data
from edgeopt.data.letterbox import letterbox, to_image, to_input, window

ROOT = Path(__file__).parents[2]
INPUTS = (TensorSpec("image", (1, 3, 96, 96), "float32", "NCHW"),)
CARD = ModelCard(source="x.pt", task="object-detection", preprocess=Preprocess(letterbox=(96, 96), scale=1 / 255))
NAMES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def shapes():
    specification = importlib.util.spec_from_file_location("shapes", ROOT / "models" / "shapes-yolo" / "shapes.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(shapes, tmp_path) -> Path:
    shapes.write(tmp_path / "set", images=5, seed=3)
    return tmp_path / "set"


def test_coco_and_yolo_files_give_the_same(folder):
    coco = open_data(str(folder / "annotations.json"), CARD, INPUTS, Path())
    yolo = open_data(str(folder / "data.yaml"), CARD, INPUTS, Path())
    assert coco.labels == yolo.labels == NAMES and len(coco) == len(yolo) == 5
    for a, b in [(coco[i], yolo[i]) for i in range(5)]:
        assert a.id == b.id and a.label is None
        assert np.array_equal(a.inputs["image"], b.inputs["image"]) and a.inputs["image"].shape == (3, 96, 96)
        assert a.truth.size == b.truth.size and a.truth.classes == b.truth.classes and a.truth.classes
        assert np.allclose(a.truth.boxes, b.truth.boxes, atol=1e-3)
    assert coco.fingerprint() != yolo.fingerprint()
    assert coco.fingerprint() == open_data(str(folder / "annotations.json"), CARD, INPUTS, Path()).fingerprint()


def test_polygons_become_boxes_and_an_image_without_a_file_has_no_objects(folder):
    (folder / "labels" / "00000.txt").write_text("2 0.1 0.2 0.5 0.2 0.3 0.8\n\n")
    (folder / "labels" / "00001.txt").unlink()
    data = open_data(str(folder / "data.yaml"), CARD, INPUTS, Path())
    height, width = data[0].truth.size
    assert data[0].truth.classes == (2,)
    assert np.allclose(data[0].truth.boxes, [[0.1 * width, 0.2 * height, 0.5 * width, 0.8 * height]])
    assert data[1].truth.boxes == ()


def test_the_cards_labels_decide_the_order(folder):
    card = CARD.model_copy(update={"labels": ("triangle", "circle", "square", "star")})
    data = open_data(str(folder / "annotations.json"), card, INPUTS, Path())
    plain = open_data(str(folder / "annotations.json"), CARD, INPUTS, Path())
    assert [card.labels[k] for k in data[0].truth.classes] == [NAMES[k] for k in plain[0].truth.classes]
    with pytest.raises(DataError, match="class 'square' is no label of the model; did you mean 'squares'"):
        open_data(
            str(folder / "data.yaml"),
            CARD.model_copy(update={"labels": ("circle", "squares", "triangle")}),
            INPUTS,
            Path(),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 3}, "not a COCO file"),
        ({"categories": [{"id": 1}]}, "not a COCO file"),
        ({"annotations": [{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "category 9 has no image, class"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1]}]}, "has no image, class or box"),
        ({"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, float("nan")]}]}, "class or box"),
        ({"images": [], "annotations": []}, "lists no images"),
        (
            {"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": []},
            r"'../../etc/passwd' leads out of",
        ),
        ({"images": [{"id": 1, "file_name": "/etc/passwd"}], "annotations": []}, "leads out of"),
    ],
)
def test_broken_coco_files(folder, changes, said):
    path = folder / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=said):
        open_data(str(path), CARD, INPUTS, Path())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not a YOLO data file"),
        ("names: [a", "not a YOLO data file"),
        ("names: [circle, square, triangle]", "names no folder of images"),
        ("names: [circle, square, triangle]\nval: ../..", "leads out of"),
        ("names: [circle, square, triangle]\nval: nothing", "is no folder of images"),
        ("names: [circle]\nval: images", "has no name"),
        ("!!python/object/apply:os.getcwd []", "not a YOLO data file"),
    ],
)
def test_broken_yolo_files(folder, content, said):
    (folder / "data.yaml").write_text(content)
    (folder / "labels" / "00000.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=said):
        open_data(str(folder / "data.yaml"), CARD, INPUTS, Path())


@pytest.mark.parametrize("line", ["0 0.5", "x 0.5 0.5 0.1 0.1", "0 nan 0 0 0", "0.5 0.5 0.5 0.1 0.1"])
def test_a_broken_line_is_named(folder, line):
    (folder / "labels" / "00002.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=r"00002\.txt: line 2: expected `class x y width height`"):
        open_data(str(folder / "data.yaml"), CARD, INPUTS, Path())


def test_letterbox_and_back():
    image = np.full((48, 64, 3), 200, np.uint8)
    boxed = letterbox(image, (32, 32))
    assert boxed.shape == (32, 32, 3)
    assert (boxed[:4] == 114).all() and (boxed[28:] == 114).all() and (boxed[4:28] == 200).all()
    place = window((48, 64), (32, 32))
    boxes = np.array([[0, 0, 64, 48], [8, 4, 20, 30]], np.float32)
    assert np.allclose(to_input(boxes, place)[0], [0, 4, 32, 28])
    assert np.allclose(to_image(to_input(boxes, place), place, (48, 64)), boxes, atol=1e-4)
    with pytest.raises(UsageError, match="letterbox stands in place of resize"):
        from edgeopt.core.settings import parse

        parse(Preprocess, {"letterbox": 32, "resize": 32}, "card")
