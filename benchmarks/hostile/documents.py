"""Cards, recipes, budgets, targets, tables and lists of boxes that no user would write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from case import Case, Place

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
TEXTS = {
    "aliases that expand to 10^9": ALIASES,
    "aliases under a key": ALIASES + "source: *a9\nmodel: *a9\nsize: *a9\nformats: *a9\n",
    "a list that holds itself": "source: &a [*a]\nmodel: *a\n",
    "a mapping that holds itself": "&a\nsource: *a\nmodel: *a\n",
    "nested 5,000 deep": "source: " + "[" * 5_000 + "]" * 5_000,
    "nested 100,000 deep": "source: " + "[" * 100_000,
    "nothing": "",
    "a list": "- 1\n- 2\n",
    "a number": "3\n",
    "several documents": "source: a\n---\nsource: b\n",
    "an unknown key": "sauce: net.onnx\nmodell: x\nsise: 3\n",
    "keys that are no words": "? [1, 2]\n: x\n1: 2\nnull: 3\n",
    "tabs": "source:\n\t- x\n",
    "a control character": "source: a\x07b\n",
    "not a number": "inputs: [{name: x, shape: [.nan, .inf, -1, 99999999999999999999999]}]\nsize: .nan\n",
    "a number of a million digits": "source: x\nmodel: x\nsize: " + "9" * 1_000_000,
    "wrong types": "source: 3\nmodel: {a: b}\nsize: [1]\nstages: 7\nformats: 9\n",
    "negative sizes": "source: net.onnx\ninputs: [{name: x, shape: [1, -8, 0]}]\nsize: -3\n",
    "a file that is not there": "source: missing.onnx\nmodel: missing.yaml\n",
    "a device": "source: /dev/zero\nmodel: /dev/zero\n",
    "a name with a null": 'source: "a\\0b.onnx"\nmodel: "a\\0b"\n',
    "a path of 10,000 letters": f"source: {'a' * 10_000}.onnx\nmodel: {'a' * 10_000}\n",
    "itself": "source: card.yaml\nmodel: card.yaml\n",
}
TAGS = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:subprocess.Popen [['touch', '{mark}']]",
    "!!python/object/apply:builtins.exec [\"open('{mark}', 'w')\"]",
    "!!python/tuple [1, 2]",
)


def settings(place: Place) -> Iterator[Case]:
    for kind in ("card", "recipe", "budget", "target"):
        for name, text in TEXTS.items():
            path = place.new(f"{kind}-x.yaml")
            path.write_text(text, encoding="utf-8")
            yield Case("cards, recipes, budgets, targets", f"{kind}: {name}", "document", path)
        for tag in TAGS:
            mark = place.mark()
            path = place.new(f"{kind}-x.yaml")
            path.write_text(f"source: {tag.format(mark=mark)}\nmodel: {tag.format(mark=mark)}\n")
            yield Case("cards, recipes, budgets, targets", f"{kind}: {tag[:34]}", "document", path)
        for name, content in {
            "UTF-16": "source: x".encode("utf-16"),
            "bytes": bytes(range(256)),
            "zeros": bytes(99),
        }.items():
            path = place.new(f"{kind}-x.yaml")
            path.write_bytes(content)
            yield Case("cards, recipes, budgets, targets", f"{kind}: {name}", "document", path)
    for name, source in {"code outside": "../evil.py:build", "absolute": "{root}/evil.py:build"}.items():
        mark = place.mark()
        path = place.new("card.yaml")
        evil = path.parent.parent / "evil.py"
        evil.write_text(f"open({str(mark)!r}, 'w')\ndef build(): ...\n")
        path.write_text(f"source: {source.format(root=evil.parent)}\n")
        yield Case("cards, recipes, budgets, targets", f"card: {name} of its folder", "source", path)


def tables(place: Place) -> Iterator[Case]:
    kind = "data tables and boxes"
    texts = {
        "nothing": "", "a header alone": "path,label\n", "no such column": "file,class\na.png,0\n",
        "ragged rows": "path,label\nimage.png\n", "too many cells": "path,label\nimage.png,0,1,2\n",
        "an open quote": 'path,label\n"image.png,0\n' + "x\n" * 1000, "a null": "path,label\nima\0ge.png,0\n",
        "a cell of 10 MB": "path,label\n" + "a" * 10**7 + ",0\n", "the same column twice": "path,path\na,b\n",
        "a million commas": "path,label\n" + "," * 10**6 + "\n", "a missing image": "path,label\nno.png,0\n",
        "a device": "path,label\n/dev/zero,0\n", "a folder": "path,label\n.,0\n", "a fifo": "path,label\nfifo,0\n",
        "a label of no class": "path,label\nimage.png,-1\n", "a huge label": f"path,label\nimage.png,{10**30}\n",
        "a label that is no number": "path,label\nimage.png,nan\nimage.png,7\n",
        "a URL": "path,label\nhttp://localhost/x.png,0\n", "a formula": "path,label\n=cmd|' /C calc'!A0,0\n",
        "text as an image": "path,label\nnotes.png,0\n",
    }  # fmt: skip
    for name, text in texts.items():
        path = _beside(place, "table.csv")
        path.write_text(text)
        yield Case(kind, f"CSV: {name}", "data", path, name in ("a huge label", "a label that is no number"))
    lines = {
        "a list": "[1]", "a number": "3", "open": '{"path": "image.png"', "keys twice": '{"path": "a", "path": "b"}',
        "nested": '{"path": {"a": [' + "[" * 10_000 + "}", "deep": "[" * 100_000, "a null": '{"path": "a\\u0000.png"}',
        "no path": '{"label": 0}', "a surrogate": '{"path": "\\ud800.png", "label": 0}', "NaN": '{"path": NaN}',
        "a long number": '{"path": "image.png", "label": ' + "9" * 5000 + "}", "null": '{"path": null, "label": null}',
    }  # fmt: skip
    for name, text in lines.items():
        path = _beside(place, "table.jsonl")
        path.write_text(text + "\n")
        yield Case(kind, f"JSON lines: {name}", "data", path)
    for name, encoded in {"UTF-16": "path,label\nimage.png,0\n".encode("utf-16"), "bytes": bytes(range(256))}.items():
        path = _beside(place, "table.csv")
        path.write_bytes(encoded)
        yield Case(kind, f"CSV: {name}", "data", path)
    yield from _boxes(place)


def _boxes(place: Place) -> Iterator[Case]:
    sound = json.loads(place.seeds["boxes.json"].read_bytes())
    changes: dict[str, dict] = {
        "a path outside": {"images": [{**sound["images"][0], "file_name": "../image.png"}]},
        "an absolute path": {"images": [{**sound["images"][0], "file_name": "/etc/passwd"}]},
        "a device": {"images": [{**sound["images"][0], "file_name": "/dev/zero"}]},
        "a null in a path": {"images": [{**sound["images"][0], "file_name": "a\0.png"}]},
        "no images": {"images": []}, "images that are none": {"images": [3]}, "images as text": {"images": "x"},
        "no classes": {"categories": []}, "a class of no number": {"categories": [{"id": "x", "name": "y"}]},
        "a box of three": {"annotations": [{**sound["annotations"][0], "bbox": [1, 2, 3]}]},
        "a box of text": {"annotations": [{**sound["annotations"][0], "bbox": "abcd"}]},
        "a box without end": {"annotations": [{**sound["annotations"][0], "bbox": [0, 0, 1e400, 1]}]},
        "a negative box": {"annotations": [{**sound["annotations"][0], "bbox": [0, 0, -5, -5]}]},
        "an unknown image": {"annotations": [{**sound["annotations"][0], "image_id": 99}]},
        "an unknown class": {"annotations": [{**sound["annotations"][0], "category_id": 99}]},
        "a class that is a list": {"annotations": [{**sound["annotations"][0], "category_id": [1]}]},
        "annotations as numbers": {"annotations": 7}, "the same image twice": {"images": sound["images"] * 2},
    }  # fmt: skip
    for name, change in changes.items():
        path = _beside(place, "boxes.json")
        path.write_text(json.dumps(sound | change))
        usual = name in ("a negative box", "the same image twice", "a box without end")
        yield Case("data tables and boxes", f"COCO: {name}", "boxes", path, usual)
    for name, text in {"a list": "[]", "nothing": "", "deep": "[" * 100_000, "open": '{"images": ['}.items():
        path = _beside(place, "boxes.json")
        path.write_text(text)
        yield Case("data tables and boxes", f"COCO: {name}", "boxes", path)
    texts = {
        "code in a tag": "names: !!python/object/apply:os.system ['touch {mark}']\n", "no names": "val: images\n",
        "a folder outside": "names: [a]\nval: ../../../etc\n", "a device": "names: [a]\nval: /dev/zero\n",
        "a download": "names: [a]\nval: images\ndownload: touch {mark}\n", "aliases": ALIASES + "names: *a9\nval: x\n",
        "a list": "- a\n", "nothing": "", "nested": "names: " + "[" * 5000,
    }  # fmt: skip
    for name, text in texts.items():
        mark = place.mark()
        path = place.new("data.yaml")
        path.write_text(text.replace("{mark}", str(mark)))
        yield Case("data tables and boxes", f"YOLO: {name}", "boxes", path)
    rows = ("0 0.5 0.5 0.5", "x 0.5 0.5 0.1 0.1", "9 0.5 0.5 0.1 0.1", "0 nan 0.5 0.1 0.1", "0 1e99 0.5 0.1 0.1",
            "-1 0.5 0.5 0.1 0.1", "\0", "0 " * 10_000)  # fmt: skip
    for row in rows:
        path = place.new("data.yaml")
        for folder in ("images", "labels"):
            (path.parent / folder).mkdir()
        (path.parent / "images" / "a.png").write_bytes(place.seeds["image.png"].read_bytes())
        (path.parent / "labels" / "a.txt").write_text(row + "\n")
        path.write_text("names: [thing]\nval: images\n")
        usual = row.startswith(("0 1e99", "0 0 0"))  # a box far outside, a polygon of one place
        yield Case("data tables and boxes", f"YOLO: label {row[:20]!r}", "boxes", path, usual)


def _beside(place: Place, name: str) -> Path:
    path = place.new(name)
    for image in ("image.png", "image.jpg"):
        (path.parent / image).write_bytes(place.seeds[image].read_bytes())
    (path.parent / "notes.png").write_text("not an image\n" * 20)
    if name.endswith(".csv"):
        os.mkfifo(path.parent / "fifo")
    return path
