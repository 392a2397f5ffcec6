"""`edgeopt sensitivity`: a table, a plot, and the layers that should stay in float."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

FRAGILE = """
class Fragile(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wide, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        # One channel of what `wide` writes is thousands of times the others, and no answer depends on it.
        self.wide.weight.data[0] *= 3000
        self.head.weight.data[:, 0] = 0
        for layer in (self.stem, self.wide, self.head):
            layer.bias.data.zero_()

    def forward(self, image):
        return self.head(self.wide(torch.relu(self.stem(image))).mean((2, 3)))

def build():
    return Fragile()
"""


@pytest.fixture(scope="module")
def fragile(write_model, tmp_path_factory):
    data = tmp_path_factory.mktemp("noise") / "noise.npz"
    random = np.random.default_rng(0)
    patterns = random.choice(random.standard_normal((12, 1, 3, 3)), 48)  # each image repeats one of twelve
    np.savez(data, image=np.tile(patterns, (1, 1, 3, 3))[:, :, :8, :8].astype(np.float32))
    card = write_model("fragile", FRAGILE).parent / "card.yaml"
    card.write_text(
        "source: fragile.py:build\ntask: image-classification\ninputs: [{name: image, shape: [1, 1, 8, 8]}]\n"
    )
    return [card, "--data", data]


@pytest.fixture(scope="module")
def found(edgeopt, fragile, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "sensitivity"
    ran = edgeopt(
        "sensitivity", *fragile, "--samples", "24", "--held-out", "24", "--max-drop", "0.05", "--json", "-o", out
    )
    return out, ran


def test_the_layer_that_int8_ruins_is_found_and_named(found):
    _, ran = found
    assert ran.code == 0, ran.err
    units = {u["name"]: u for u in ran.json["sensitivity"]["units"]}
    assert {"stem", "wide", "head"} <= set(units)
    choice = ran.json["choice"]
    assert choice["before"]["agreement"] < 0.95 <= choice["after"]["agreement"] and choice["reached"]
    assert ran.json["keep_float"] and "stem" not in ran.json["keep_float"] and len(ran.json["keep_float"]) < len(units)
    assert choice["held_out_after"]["agreement"] > choice["held_out_before"]["agreement"]


def test_the_plot_and_the_figures_are_written(found):
    out, ran = found
    assert json.loads((out / "sensitivity.json").read_text()) == ran.json
    plot = ElementTree.parse(out / "sensitivity.svg").getroot()
    assert "wide" in "".join(plot.itertext())


def test_auto_keeps_them_in_float_and_the_manifest_names_them(edgeopt, fragile, tmp_path):
    ran = edgeopt(
        "convert", *fragile, "--to", "onnx", "--precision", "auto", "--max-drop", "0.05", "--samples", "24",
        "--calibration-samples", "24", "--no-speed", "--json", "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (artifact,) = ran.json["artifacts"]
    assert artifact["quantization"]["keep_float"] and artifact["quantization"]["search"]["reached"]
    assert artifact["parity"]["agreement"] >= 0.9


def test_auto_holds_an_snr_where_there_are_no_classes(edgeopt, fragile, write_model, tmp_path):
    _, *data = fragile
    plain = write_model("plain", FRAGILE.replace("*= 3000", "*= 1")).parent / "card.yaml"
    plain.write_text("source: plain.py:build\ntask: sentence-embedding\ninputs: [{name: image, shape: [1, 1, 8, 8]}]\n")
    kept = {}
    for least in ("10", "50"):
        ran = edgeopt(
            "convert", plain, *data, "--to", "onnx", "--precision", "auto", "--quantization", f"min_snr_db={least}",
            "--samples", "24", "--calibration-samples", "24", "--no-speed", "--json", "-o", tmp_path / least,
        )  # fmt: skip
        (artifact,) = ran.json["artifacts"]
        kept[least] = artifact["quantization"]["keep_float"]
    assert artifact["parity"]["snr_db"] >= 30
    assert kept["10"] == [] and kept["50"], kept


def test_a_table_for_people(edgeopt, fragile):
    ran = edgeopt("sensitivity", *fragile, "--samples", "8", "--held-out", "4", "--keep-float", "head")
    assert ran.code == 0 and "wide" in ran.out and "head" not in ran.out.split("unit", 1)[1], ran.out
    ran = edgeopt("sensitivity", *fragile, "--keep-float", "haed")
    assert ran.code != 0 and "no layer is called 'haed'; did you mean 'head'" in ran.err


def test_a_detectors_layers_are_listed_by_what_its_boxes_lose():
    from edgeopt.report.sensitivity_plot import worst_first

    rows = [
        {"name": "scores", "sqnr_db": 30.0, "metric_drop": 0.0},
        {"name": "boxes", "sqnr_db": 40.0, "metric_drop": 0.02},
    ]
    names = {m: [r["name"] for r in worst_first({"metric": m, "units": rows})] for m in ("overlap", "agreement", None)}
    assert names == {"overlap": ["boxes", "scores"], "agreement": ["scores", "boxes"], None: ["scores", "boxes"]}
