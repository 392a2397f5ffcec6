from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.core.errors import DataError
from edgeopt.data.labels import class_index, read_labels

ANIMALS = ("cat", "dog", "great white shark")


def test_labels_come_from_the_card_or_its_file(tmp_path, card):
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\ndog\r\ngreat white shark\r\n\r\n".encode())
    assert read_labels(card(labels="labels.txt"), tmp_path) == ANIMALS
    assert read_labels(card(labels=ANIMALS), tmp_path) == ANIMALS
    assert read_labels(card(), tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no labels in it"),
        (b"cat\n\ndog\n", "line 2: the label is empty"),
        (b"cat\ndog\ncat\n", "line 3: label 'cat' stands already at .*line 1"),
        (b"cat\n\xff\xfe", "cannot be read"),
    ],
)
def test_a_wrong_label_file_is_named_with_its_line(tmp_path, card, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"labels.txt: .*{message}"):
        read_labels(card(labels="labels.txt"), tmp_path)


def test_a_missing_label_file_is_named(tmp_path, card):
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read_labels(card(labels="none.txt"), tmp_path)


@given(st.integers(0, 2))
def test_an_index_and_its_name_mean_the_same_class(index):
    assert class_index(str(index), ANIMALS, "x") == class_index(f" {ANIMALS[index]} ", ANIMALS, "x") == index


@pytest.mark.parametrize(
    ("value", "labels", "message"),
    [
        ("3", ANIMALS, "label 3 is out of range; expected 0 to 2"),
        ("-1", ANIMALS, "label -1 is out of range"),
        ("-1", None, "expected 0 or more"),
        ("1.0", ANIMALS, "neither an integer nor a label"),
        ("dgo", ANIMALS, "did you mean 'dog'"),
        ("cat", None, "not an integer, and the model card has no labels"),
        ("٣", ANIMALS, "neither an integer"),
    ],
)
def test_what_is_no_class_is_refused_with_its_place(value, labels, message):
    with pytest.raises(DataError, match=rf"^table.csv: line 7: .*{message}"):
        class_index(value, labels, "table.csv: line 7")
