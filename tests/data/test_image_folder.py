from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core.errors import DataError
from edgeopt.data import open_data


def fill(folder: Path, names: list[str], content: bytes) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, names: list[str], content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


@pytest.fixture
def image(picture, encode) -> bytes:
    return encode(picture[:8, :8])


CATS_AND_DOGS = ["dog/1.png", "cat/2.PNG", "cat/deep/er/3.png"]


@pytest.mark.parametrize("where", ["folder", "set.zip"])
def test_folders_are_classes_in_the_order_of_their_names(tmp_path, card, rgb, image, picture, where):
    names = [*CATS_AND_DOGS, "cat/notes.txt", "cat/.hidden.png", "__MACOSX/cat/x.png"]
    pack(tmp_path / where, names, image) if where.endswith(".zip") else fill(tmp_path / where, names, image)
    source = open_data(where, card(), rgb, tmp_path)
    assert source.labels == ("cat", "dog") and source.kind == "image-folder"
    assert [(source[i].id, source[i].label) for i in range(len(source))] == [
        ("cat/2.PNG", 0),
        ("cat/deep/er/3.png", 0),
        ("dog/1.png", 1),
    ]
    assert np.array_equal(source[0].inputs["image"], picture[:8, :8].transpose(2, 0, 1))


def test_a_folder_around_everything_in_a_zip_is_no_class(tmp_path, card, rgb, image):
    pack(tmp_path / "set.zip", ["set/dog/1.png", "set/cat/2.png"], image)
    assert open_data("set.zip", card(), rgb, tmp_path).labels == ("cat", "dog")


def test_the_cards_labels_decide_the_order(tmp_path, card, rgb, image):
    fill(tmp_path / "set", CATS_AND_DOGS, image)
    source = open_data("set", card(labels=["dog", "horse", "cat"]), rgb, tmp_path)
    assert [source[i].label for i in range(3)] == [2, 2, 0]


def test_folders_named_by_numbers_are_indices(tmp_path, card, rgb, image):
    fill(tmp_path / "set", ["10/a.png", "2/b.png"], image)
    source = open_data("set", card(), rgb, tmp_path)
    assert {source[i].id: source[i].label for i in range(2)} == {"10/a.png": 10, "2/b.png": 2}
    with pytest.raises(DataError, match="folder 10: label 10 is out of range"):
        open_data("set", card(labels=["a", "b", "c"]), rgb, tmp_path)


def test_other_folder_names_are_taken_in_order_if_their_number_fits(tmp_path, card, rgb, image):
    fill(tmp_path / "set", ["n02/a.png", "n01/b.png"], image)
    source = open_data("set", card(labels=["tench", "goldfish"]), rgb, tmp_path)
    assert [(source[i].id, source[i].label) for i in range(2)] == [("n01/b.png", 0), ("n02/a.png", 1)]
    with pytest.raises(DataError, match=r"the 2 class folders .* not named by any of the card's 3 labels"):
        open_data("set", card(labels=["tench", "goldfish", "shark"]), rgb, tmp_path)


def test_a_folder_that_is_no_label_is_named(tmp_path, card, rgb, image):
    fill(tmp_path / "set", ["cat/1.png", "dgo/1.png"], image)
    with pytest.raises(DataError, match="folder 'dgo' is no label of the card; did you mean 'dog'"):
        open_data("set", card(labels=["cat", "dog"]), rgb, tmp_path)


def test_images_in_no_folder_have_no_label(tmp_path, card, rgb, image):
    fill(tmp_path / "set", ["1.png", "2.png"], image)
    assert open_data("set", card(), rgb, tmp_path)[1].label is None
    fill(tmp_path / "set", ["cat/1.png"], image)
    with pytest.raises(DataError, match=r"1\.png lies beside the class folders"):
        open_data("set", card(), rgb, tmp_path)


def test_links_to_class_folders_are_followed_but_not_in_circles(tmp_path, card, rgb, image):
    fill(tmp_path / "elsewhere", ["1.png"], image)
    fill(tmp_path / "set", ["dog/1.png"], image)
    (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/dog/again").symlink_to(tmp_path / "set")
    assert len(open_data("set", card(), rgb, tmp_path)) == 2


def test_nothing_to_read_is_said(tmp_path, card, rgb, image):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "texts", ["cat/notes.txt"], image)
    pack(tmp_path / "empty.zip", [], image)
    for name in ("empty", "texts", "empty.zip"):
        with pytest.raises(DataError, match=rf"{name}: no images in it; expected <class>/<image>.jpg"):
            open_data(name, card(), rgb, tmp_path)


def test_a_damaged_image_is_named(tmp_path, card, rgb, image):
    fill(tmp_path / "set", ["cat/1.png"], image[:-20])
    with pytest.raises(DataError, match=r"set: cat/1\.png: the PNG is cut short"):
        open_data("set", card(), rgb, tmp_path)[0]
    (tmp_path / "set/cat/2.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cat/2\.png: .*missing"):
        open_data("set", card(), rgb, tmp_path)[1]


def test_a_damaged_zip_is_refused(tmp_path, card, rgb, image):
    whole = pack(tmp_path / "set.zip", ["cat/1.png"], image, zipfile.ZIP_DEFLATED).read_bytes()
    for name, content in (("cut.zip", whole[:-30]), ("text.zip", b"path,label\n"), ("nothing.zip", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: not a readable .zip"):
            open_data(name, card(), rgb, tmp_path)
    (tmp_path / "flipped.zip").write_bytes(whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:])
    with pytest.raises(DataError, match=r"flipped\.zip: cat/1\.png: cannot be unpacked"):
        open_data("flipped.zip", card(), rgb, tmp_path)[0]


def test_an_entry_that_unpacks_to_too_much_is_refused(tmp_path, card, rgb):
    pack(tmp_path / "bomb.zip", ["cat/1.png"], bytes(2**28 + 1), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="unpacks to more than 256 MiB"):
        open_data("bomb.zip", card(), rgb, tmp_path)[0]


@pytest.mark.parametrize("where", ["set", "set.zip"])
def test_the_fingerprint_follows_the_files(tmp_path, card, rgb, image, where):
    def identity(names: list[str], content: bytes, **options) -> str:
        (pack if where.endswith(".zip") else fill)(tmp_path / where, names, content)
        return open_data(where, card(**options), rgb, tmp_path).fingerprint()

    first = identity(["cat/1.png"], image)
    assert identity(["cat/1.png"], image, preprocess={"scale": 2}) != first
    assert identity(["cat/1.png", "cat/2.png"], image) != first
    assert identity(["cat/1.png"], image + b"x") != first


@pytest.mark.shared_data
def test_cifar_is_read_from_its_zip(card):
    from edgeopt.core.model import TensorSpec

    path = Path(__file__).parents[3] / "shared/data/cifar10-test.zip"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    source = open_data(str(path), card(), (TensorSpec("image", (1, 3, 32, 32)),), path.parent)
    assert len(source) == 10_000 and source.labels is not None and len(source.labels) == 10
    sample = source[9_999]
    assert (sample.id.split("/")[0], sample.label) == ("truck", 9)
