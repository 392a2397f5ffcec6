from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import DataError, EdgeoptError, UsageError
from edgeopt.data import open_data
from edgeopt.data.table_rows import read_rows

NAMES = ("cat", "dog")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12)


@pytest.fixture
def read(pictures: Path, card, rgb) -> Callable:
    """Write a table beside the pictures and open it."""

    def opened(content: str | bytes, name: str = "table.csv", **options):
        path = pictures / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return open_data(name, card(**options), rgb, pictures)

    return opened


def test_csv_gives_images_labels_and_slices(read):
    source = read("path,label,camera\na.png,0,left\nin/c.bmp,dog,right\n", labels=NAMES)
    assert len(source) == 2 and source.labels == NAMES and source.kind == "table"
    sample = source[1]
    assert (sample.id, sample.label, sample.slices) == ("in/c.bmp", 1, {"camera": "right"})
    assert sample.inputs["image"].shape == (3, 8, 8) and sample.inputs["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "path,label\na.png,1\n"),
        ("t.csv", '\ufeff"path","label"\r\n"a.png","dog"\r\n'),
        ("t.csv", "label,path\n\n1,a.png\n\n"),
        ("t.tsv", "path\tlabel\na.png\t1\n"),
        ("t.jsonl", '{"path": "a.png", "label": 1}\n'),
        ("t.ndjson", '\n{"label": "dog", "path": "a.png"}\r\n'),
    ],
)
def test_every_form_of_a_table_says_the_same(read, name, content):
    sample = read(content, name, labels=NAMES)[0]
    assert (sample.id, sample.label) == ("a.png", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the table has no rows: it is empty"),
        ("path,label\n", "the table has a header but no rows"),
        ("image,label\na.png,0\n", "line 1: no column path or text; the columns are image, label"),
        ("path,lable\na.png,0\n", "line 1: no column label; did you mean 'lable'"),
        ("path,klass\na.png,0\n", "line 1: no column label; the columns are klass, path"),
        ("path,label,path\na.png,0,a.png\n", "line 1: column 'path' stands twice"),
        ("path,label,\na.png,0,\n", "line 1: column 3 has no name"),
        ("path,label\na.png,0\nb.jpg\n", "line 3: 1 cell where the header has 2"),
        ("path,label\na.png,0,9\n", "line 2: 3 cells where the header has 2"),
        ("path,label\n,\n", "line 2: the label is empty"),
        ("path,label\n,1\n", "line 2: the path is empty"),
        ("path,label\na.png,2\n", "line 2: label 2 is out of range; expected 0 to 1"),
        ("path,label\na.png,-1\n", "line 2: label -1 is out of range"),
        ("path,label\na.png,1.5\n", "line 2: label '1.5' is neither an integer nor a label"),
        ('path,label,note\na.png,0,"one\ntwo"\n\nb.jpg,dgo,x\n', "line 5: label 'dgo' .*did you mean 'dog'"),
        ('path,label\na.png,0\n"b.jpg,0\n', "line 3: malformed row"),
        ('path,label\n"a"x,0\n', "line 2: malformed row"),
        ("path,label\n../x.png,0\n", "line 2: path '../x.png' leads out of the table's folder"),
        ("path,label\nin/../../x.png,0\n", "line 2: .*leads out"),
        ("path,label\n/etc/passwd,0\n", "line 2: .*leads out"),
        ("path,label\nC:\\x.png,0\n", "line 2: .*leads out"),
        (b"path,label\na.png,0\ncaf\xe9.png,0\n", "line 3: byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfpath,label\ncaf\xe9.png,0\n", "line 2: byte 0xe9 is not UTF-8"),
        ("path,label\na.png,0\n".encode("utf-16"), "line 1: a binary file, or UTF-16"),
        (b"PK\x03\x04\x14\x00\x00\x00", "line 1: a binary file"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named_with_its_line(read, content, message):
    with pytest.raises(DataError, match=rf"table\.csv: {message}"):
        read(content, labels=NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"path": "a.png", "label": 1}\n{"path": "a.png", label}', "line 2: not valid JSON"),
        ('["a.png", 1]', "line 1: expected a JSON object, found list"),
        ('{"path": "a.png", "label": 1, "label": 0}', "line 1: key 'label' stands twice"),
        ('{"path": "a.png", "label": 1.0}', "line 1: label 1.0 is neither an integer nor a name"),
        ('{"path": "a.png", "label": true}', "line 1: label true"),
        ('{"path": "a.png", "label": null}', "line 1: label null"),
        ('{"path": 3, "label": 1}', "line 1: path 3 is not a string"),
        ('{"path": "a\\u0000.png", "label": 1}', "line 1: .*leads out"),
        ('{"path": "\\ud800.png", "label": 1}', "line 1: .*leads out"),
        ('{"path": "a.png", "label": 1}\n\n{"path": "a.png"}', "line 3: key 'label' is missing"),
        ('{"path": "a.png", "label": 1}\n{"path": "a.png", "label": 1, "x": 0}', "line 2: key 'x' is new"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ('{"path": "a.png", "label": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
    ],
)
def test_what_is_wrong_with_json_lines_is_named_with_its_line(read, content, message):
    with pytest.raises(DataError, match=rf"t\.jsonl: {message}"):
        read(content, "t.jsonl", labels=NAMES)


def test_images_are_checked_when_they_are_read(read, pictures):
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:-20])
    (pictures / "notes.png").write_text("no image")
    source = read("path,label\nbroken.png,0\nnotes.png,0\nnone.png,0\nin,0\na.png,0\n")
    for index, message in enumerate(("broken.png: .*cut short", "notes.png: no readable", ".*missing", ".*not a file")):
        with pytest.raises(DataError, match=rf"table\.csv: line {index + 2}: {message}"):
            source[index]
    assert source[4].label == 0


def test_a_link_may_not_lead_out_of_the_folder(read, pictures, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    outside.write_bytes((pictures / "a.png").read_bytes())
    (pictures / "link.png").symlink_to(outside)
    (pictures / "inner.png").symlink_to(pictures / "a.png")
    source = read("path,label\nlink.png,0\ninner.png,0\n")
    with pytest.raises(DataError, match=r"line 2: .*a link that leads out"):
        source[0]
    assert source[1].inputs["image"].shape == (3, 8, 8)


def test_a_task_without_classes_needs_no_labels(read):
    assert read("path\na.png\n", task="object-detection")[0].label is None


def test_a_table_of_texts_needs_a_tokenizer(read):
    with pytest.raises(UsageError, match=r"preprocess\.tokenizer"):
        read("text,label\nhello,0\n", task="text-classification")


def test_the_fingerprint_follows_content_images_and_preprocessing(read, pictures):
    table = "path,label\na.png,0\nb.jpg,1\n"
    first = read(table).fingerprint()
    assert len(first) == 64 and read(table).fingerprint() == first
    assert read("path,label\na.png,0\nb.jpg,0\n").fingerprint() != first
    assert read(table, preprocess={"mean": [1]}).fingerprint() != first
    assert read(table, labels=NAMES).fingerprint() != first
    (pictures / "b.jpg").write_bytes((pictures / "a.png").read_bytes())
    assert read(table).fingerprint() != first


def test_a_tsv_without_header_is_text_and_class(tmp_path):
    (tmp_path / "dev.tsv").write_text("it 's \"fine\t1\ncold , dull\t0\n")
    _, columns, rows = read_rows(tmp_path / "dev.tsv")
    assert columns == ("text", "label")
    assert [(r.line, r.cells["text"], r.cells["label"]) for r in rows] == [
        (1, "it 's \"fine", "1"),
        (2, "cold , dull", "0"),
    ]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6))
def test_csv_written_by_python_is_read_back_with_its_lines(tmp_path, rows):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    lines, begins = [], 2
    writer.writerow(["text", "label", "note"])
    for row in rows:
        lines.append(begins)
        before = buffer.tell()
        writer.writerow(row)
        buffer.seek(before)
        begins += sum(1 for _ in buffer)
    (tmp_path / "t.csv").write_bytes(buffer.getvalue().encode())
    _, columns, found = read_rows(tmp_path / "t.csv")
    assert columns == ("text", "label", "note")
    assert [tuple(r.cells.values()) for r in found] == rows
    assert [r.line for r in found] == lines


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(PLAIN.filter(str.strip), PLAIN.filter(str.strip)), min_size=1, max_size=6))
def test_tsv_and_json_lines_are_read_back(tmp_path, rows):
    (tmp_path / "t.tsv").write_text("\n".join("\t".join(r) for r in [("text", "note"), *rows]), "utf-8", newline="")
    objects = [
        json.dumps({"text": text, "note": note}, ensure_ascii=bool(i % 2)) for i, (text, note) in enumerate(rows)
    ]
    (tmp_path / "t.jsonl").write_text("\n\n".join(objects), "utf-8")
    tsv, lines = read_rows(tmp_path / "t.tsv"), read_rows(tmp_path / "t.jsonl")
    assert [tuple(r.cells.values()) for r in tsv[2]] == [tuple(r.cells.values()) for r in lines[2]] == rows
    assert [r.line for r in tsv[2]] == [i + 2 for i in range(len(rows))]
    assert [r.line for r in lines[2]] == [2 * i + 1 for i in range(len(rows))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=80),
        st.text(st.sampled_from('path,label\t\n\r"{}:[]0a.png\0é-1'), max_size=80).map(str.encode),
        st.lists(st.sampled_from(["path,label\n", "a.png,0\n", '"', ",", "a.png,1\r", "\n", "\ufeff", "-"])).map(
            lambda parts: "".join(parts).encode()
        ),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_any_bytes_are_a_table_or_one_error_line(tmp_path, card, rgb, content, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    try:
        source = open_data(path.name, card(labels=NAMES), rgb, tmp_path)
    except EdgeoptError as error:
        assert isinstance(error, (DataError, UsageError)) and "\n" not in str(error)
    else:
        assert len(source) > 0
