"""What `edgeopt run` tells of classes, slices and single answers that its stages changed, and the report of it."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
import yaml
from recipe_folder import EXPORT, make_folder, needs_training, write_recipe

STAGES = [{"finetune": {"steps": 40, "batch_size": 20, "learning_rate": 0.01}}]


@pytest.fixture
def folder(tmp_path):
    """The model with pictures in a table: of two cameras, at times that are all different."""
    folder = make_folder(tmp_path / "patterns")
    data = np.load(folder / "test.npz")
    lines = ["path,label,camera,time"]
    for i, (image, label) in enumerate(zip(data["image"], data["label"], strict=True)):
        cv2.imwrite(str(folder / f"{i}.png"), np.clip(image[0] * 40 + 128, 0, 255).astype(np.uint8))
        lines.append(f"{i}.png,{label},{'left' if i % 3 else 'right'},{i}")
    (folder / "test.csv").write_text("\n".join(lines) + "\n")
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["preprocess"] = {"color": "gray", "mean": [128], "std": [40]}
    card["data"]["eval"] = "test.csv"
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


@needs_training
def test_slices_classes_and_changed_answers_of_a_run(fresh_edgeopt, folder, tmp_path):
    out = tmp_path / "out"
    ran = fresh_edgeopt("run", write_recipe(folder, stages=STAGES), "-o", out, "--json", "--jobs", "1")
    assert ran.code == 0, ran.err
    record = json.loads((out / "run.json").read_bytes())
    before, after = (s["evaluation"]["top1"] for s in record["stages"])
    rows = record["per_slice"]["slices"]
    assert {(r["column"], r["value"], r["samples"]) for r in rows} == {("camera", "left", 40), ("camera", "right", 20)}
    assert sum(r["reference_top1"] * r["samples"] for r in rows) / 60 == pytest.approx(before, abs=1e-5)
    assert sum(r["top1"] * r["samples"] for r in rows) / 60 == pytest.approx(after, abs=1e-5)
    hit = [f"camera = {r['value']}" for r in sorted(rows, key=lambda r: -r["drop"]) if r["drop"] > 0]
    assert record["per_slice"]["hit_hardest"] == hit
    answers = json.loads((out / "answers.json").read_bytes())
    changed = record["stages"][-1]["changed"]
    assert answers["changed_count"] == changed["count"] == len(answers["changed"]) > 0
    assert sorted(c["index"] for c in answers["changed"])[:50] == changed["samples"]
    first = answers["changed"][0]
    assert first["id"] == f"{first['index']}.png" and first["before"] != first["after"]
    lost = [c["before"] == c["label"] for c in answers["changed"]]
    assert lost == sorted(lost, reverse=True), "what was right before stands first"
    address = answers["thumbnails"][str(first["index"])].removeprefix("data:image/png;base64,")
    import base64

    drawn = cv2.imdecode(np.frombuffer(base64.b64decode(address), np.uint8), cv2.IMREAD_GRAYSCALE)
    given = cv2.imread(str(folder / first["id"]), cv2.IMREAD_GRAYSCALE)
    assert np.abs(drawn.astype(int) - given).max() <= 1

    assert fresh_edgeopt("report", out).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    section = page[page.index("-stages-h") :]
    section = section[: section.index("</section>")]
    assert section.count("<img") == min(24, answers["changed_count"])
    assert "camera = left" in section and re.search(r"answered otherwise than by the original", section)


@needs_training
def test_slices_are_columns_that_are_named(edgeopt, folder, tmp_path):
    recipe = write_recipe(folder, stages=STAGES, export=EXPORT, data={"slices": ["camra"]})
    ran = edgeopt("run", recipe, "-o", tmp_path / "out")
    assert ran.code == 2 and "data.slices: test.csv has no column 'camra'; did you mean 'camera'?" in ran.error
