"""The conformance suite's own files: the list of cases holds what it should, records become a matrix, runs resume."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "conformance"


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("cases", "report", "run"):
        sys.modules.pop(name, None)
    yield {name: importlib.import_module(name) for name in ("cases", "report", "run")}
    for name in ("cases", "report", "run"):
        sys.modules.pop(name, None)


def record(name: str, **cells: object) -> dict:
    told = {k.replace("__", " "): v for k, v in cells.items()}
    return {"name": name, "family": "timm", "precision": "fp32,fp16", "shape": None, "versions": {}, "cells": told}


def test_the_list_of_cases(suite, tmp_path):
    cases = suite["cases"].read_cases(tmp_path)
    count = Counter(c.family for c in cases)
    assert count["timm"] >= 40 and count["transformers"] >= 8 and count["ultralytics"] >= 6 and count["keras"] == 3
    assert {"nudenet", "magika", "silero-vad", "minilm", "efficientnet-lite0"} <= {c.name for c in cases}
    assert {"rapidocr-det", "efficientnet-lite1-weights", "efficientnet-lite2-weights"} <= {c.name for c in cases}
    magika, silero = (next(c for c in cases if c.name == n) for n in ("magika", "silero-vad"))
    assert np.load(magika.data)["bytes"].shape == (16, 2048) and silero.shape == ["1,576", "2,1,128"]
    bert = next(c for c in cases if c.name == "bert")
    config = json.loads((Path(bert.source.removeprefix("hf:")) / "config.json").read_text())
    assert config["model_type"] == "bert" and config["vocab_size"] == 1000


def test_causes_name_cells_that_there_are(suite, tmp_path):
    causes = suite["report"].causes()
    names = {c.name for c in suite["cases"].read_cases(tmp_path)}
    assert causes and all(case in names and len(cell.split()) == 2 for case, cell in causes)
    (case, cell), cause = next(iter(causes.items()))
    low = {"snr_db": 65.0, "passed": True, "reason": None}
    (told,) = suite["report"].reasons([record(case, **{cell.replace(" ", "__"): low})])
    assert told[2] == f"SNR is 65.0 dB, below 80.0; cause: {cause}"


def test_cells_count_only_above_their_mark_and_others_have_reasons(suite):
    good = {"snr_db": 120.0, "passed": True, "reason": None}
    low = {"snr_db": 70.0, "passed": True, "reason": None}
    bad = {"snr_db": None, "reason": "operator <Foo> is not known"}
    records = [record("a", onnx__fp32=good, litert__fp32=low), record("b", onnx__fp32=bad, onnx__fp16=low)]
    records.append(record("c") | {"absent": "package x is not installed"})
    report = suite["report"]
    assert report.summary(records, ["fp32", "fp16"]) == [
        "fp32: 1 of 3 cells verified (33.3 %, SNR ≥ 80 dB)",
        "fp16: 1 of 1 cells verified (100.0 %, SNR ≥ 45 dB)",
    ]
    text = report.markdown(records, ["fp32", "fp16"], ["a", "b", "c", "d", "e"])
    assert "- 2 of 5 cases have not been run: d, e\n" in text and "in some precisions only" not in text
    assert "- 3 of the 3 cases that were run" in report.markdown(records, ["fp32", "fp16", "x"], [])
    assert "| a | 120 dB | 70 dB |" in text and "- b, onnx fp32: operator <Foo> is not known" in text
    assert "a, litert fp32: SNR is 70.0 dB, below 80.0" in text and "c, all: package x is not installed" in text
    page = report.page(records, ["fp32", "fp16"], ["a", "d"])
    assert "1 of 2 cases have not been run: d" in page
    assert "&lt;Foo&gt;" in page and "<Foo>" not in page and page.count("<tr>") == 4


def test_a_record_of_the_same_versions_is_not_made_again(suite, tmp_path):
    key = {"precision": "fp32", "shape": None, "versions": {"torch": "1"}}
    path = tmp_path / "a.json"
    finished = suite["run"]._finished
    assert not finished(path, key, again=False)
    path.write_text(json.dumps(key | {"cells": {"onnx fp32": {"passed": False}}}))
    assert finished(path, key, again=False) and not finished(path, key, again=True)
    assert not finished(path, key | {"versions": {"torch": "2"}}, again=False)
    path.write_text('{"precision":')
    assert not finished(path, key, again=False)


@pytest.mark.slow
def test_one_case_end_to_end(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "card mnist", "--precision", "fp32", "--samples", "2"]
    for expected in ("card mnist-mobilenet: 4 of 4 passed", ""):
        ran = subprocess.run([*command, "--records", str(tmp_path)], capture_output=True, text=True, check=True)
        assert ran.stdout.startswith(expected) and bool(ran.stdout) == bool(expected)
