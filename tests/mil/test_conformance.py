"""The committed conformance table, and the script that makes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "coreml_evaluator"
WANTED = {
    "efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv4_conv_small", "resnet18", "vit_tiny_patch16_224",
    "convnext_atto", "efficientformer_l1", "fastvit_t8", "swin_tiny_patch4_window7_224", "mobilevit_xxs",
    "minilm_l6_v2", "bert", "distilbert", "yolo11n", "yolov8n", "lstm_classifier", "gru_classifier", "unet",
    "multi_output", "stateful",
}  # fmt: skip
# Small enough that checking inputs, or a loop of small operators, is what takes the time.
NOT_TIMED = {"gru_classifier", "lstm_classifier", "multi_output", "stateful"}


def _records(folder: Path) -> dict[str, Any]:
    return {record["model"]: record for record in json.loads((folder / "results.json").read_text())["records"]}


def _check(record: dict[str, Any]) -> None:
    assert "error" not in record
    assert record["fp32_db"] >= 100
    assert record["fp16_db"] >= 45


def test_committed_table_has_every_model_within_the_thresholds() -> None:
    records = _records(FOLDER)
    assert records.keys() == WANTED
    for name, record in records.items():
        _check(record)
        assert record["ratio"] <= 2 or name in NOT_TIMED
        assert f"| {name} |" in (FOLDER / "results.md").read_text()


def _regenerate(tmp_path: Path, *models: str) -> dict[str, Any]:
    script = [sys.executable, str(FOLDER / "run.py"), *models, "--out", str(tmp_path), "--repeats", "3"]
    result = subprocess.run(script, capture_output=True, text=True, timeout=3000, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return _records(tmp_path)


def test_small_model_again(tmp_path: Path) -> None:
    records = _regenerate(tmp_path, "gru_classifier")
    for record in records.values():
        _check(record)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whole_table_again(tmp_path: Path) -> None:
    records = _regenerate(tmp_path)
    assert records.keys() == WANTED
    for record in records.values():
        _check(record)
