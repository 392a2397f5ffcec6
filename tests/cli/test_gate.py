"""`edgeopt gate`: exit codes, what is listed, what is written, and that sizes need no runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

SIZES = {"onnx/fp32": 4000, "onnx/static_wi8_ai8": 1200, "litert/static_wi8_ai8": 1500}


@pytest.fixture
def budget(tmp_path):
    def write(text):
        path = tmp_path / "budgets.yaml"
        path.write_text(text)
        return path

    return write


def test_within_budget(edgeopt, make_bundle, budget):
    ran = edgeopt("gate", make_bundle("b", SIZES), "--budget", budget("size: {max_bytes: 4000}"), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["verdict"] == "pass" and len(ran.json["passed"]) == 3 and not ran.json["violations"]


def test_every_violation_is_listed_with_value_limit_and_margin(edgeopt, make_bundle, budget):
    text = "size: {max_bytes: 1300}\nparity_snr_db: {min: 40}\nint8_coverage: {min: 0.8}"
    bundle = make_bundle("b", SIZES)
    ran = edgeopt("gate", bundle, "--budget", budget(text), "--json")
    assert ran.code == 3
    found = {(f["artifact"], f["limit"]): f for f in ran.json["violations"]}
    assert len(found) == 5
    size = found["onnx/fp32", "size.max_bytes"]
    assert (size["measured"], size["allowed"], size["margin"], size["unit"]) == (4000, 1300, -2700, "bytes")
    shown = edgeopt("gate", bundle, "--budget", budget(text))
    assert shown.code == 3 and "budget exceeded" in shown.out
    assert "onnx/fp32: size.max_bytes 1,300 B: measured 4,000 B, margin -2.7 kB" in shown.out


def test_a_baseline_and_one_that_is_missing(edgeopt, make_bundle, budget):
    new, old = make_bundle("new", SIZES), make_bundle("old", {"onnx/fp32": 4000, "onnx/static_wi8_ai8": 1000})
    limits = budget("size: {max_ratio: 1.1}")
    ran = edgeopt("gate", new, "--budget", limits, "--baseline", old, "--json")
    assert ran.code == 3
    assert [f["artifact"] for f in ran.json["violations"]] == ["onnx/static_wi8_ai8"]
    assert "holds no litert/static_wi8_ai8" in ran.json["unjudged"][0]["detail"]
    ran = edgeopt("gate", new, "--budget", limits, "--json")
    assert ran.code == 4 and {f["detail"] for f in ran.json["unjudged"]} == {"give --baseline BUNDLE"}


@pytest.mark.parametrize(("choice", "code"), [(None, 4), ("pass", 0), ("fail", 3)])
def test_what_could_not_be_judged(edgeopt, make_bundle, budget, choice, code):
    options = ["--inconclusive", choice] if choice else []
    ran = edgeopt("gate", make_bundle("b", SIZES), "--budget", budget("memory: {max_bytes: 9}"), "--json", *options)
    assert ran.code == code and len(ran.json["unjudged"]) == 3
    assert "edgeopt bench" in ran.json["unjudged"][0]["detail"]


def test_limits_of_a_target(edgeopt, make_bundle, budget):
    limits = budget("size: {max_bytes: 9000}\npixel-8: {size: {max_bytes: 1000}}")
    assert edgeopt("gate", make_bundle("a", SIZES), "--budget", limits).code == 0
    assert edgeopt("gate", make_bundle("b", SIZES), "--budget", limits, "--target", "pixel-8").code == 3
    assert edgeopt("gate", make_bundle("c", SIZES, target="pixel-8"), "--budget", limits).code == 3


def test_an_artifact_that_the_budget_names_must_be_there(edgeopt, make_bundle, budget):
    limits = budget("artifacts: {'executorch/*': {size: {max_bytes: 10}}}")
    ran = edgeopt("gate", make_bundle("b", SIZES), "--budget", limits, "--json")
    assert ran.code == 4 and "holds no such artifact" in ran.json["unjudged"][0]["detail"]


def test_accuracy_is_judged_by_paired_answers(edgeopt, make_bundle, evaluated, budget):
    bundle = make_bundle("b", SIZES)
    evaluated(
        bundle,
        {
            "onnx/fp32": {"cat": (500, 0, 0), "dog": (500, 0, 0)},
            "onnx/static_wi8_ai8": {"cat": (500, 12, 0), "dog": (500, 1, 0)},
            "litert/static_wi8_ai8": {"cat": (500, 60, 0), "dog": (500, 0, 0)},
        },
    )
    ran = edgeopt(
        "gate", bundle, "--budget", budget("accuracy_drop: {max: 0.01}\nworst_class_drop: {max: 0.05}"), "--json"
    )
    assert ran.code == 3
    assert [(f["artifact"], f["limit"]) for f in ran.json["violations"]] == [
        ("litert/static_wi8_ai8", "accuracy_drop.max"),
        ("litert/static_wi8_ai8", "worst_class_drop.max"),
    ]
    assert "class cat" in ran.json["violations"][1]["detail"]
    (unsure,) = ran.json["unjudged"]
    assert unsure["artifact"] == "onnx/static_wi8_ai8" and "samples would settle it" in unsure["detail"]


def test_without_an_evaluation_the_comparison_of_convert_counts_as_far_as_it_goes(edgeopt, make_bundle, budget):
    worse = {"onnx/static_wi8_ai8": {"parity": {"top1": 0.7, "reference_top1": 0.91, "agreement": 0.78}}}
    ran = edgeopt(
        "gate", make_bundle("b", SIZES, artifacts=worse), "--budget", budget("accuracy_drop: {max: 0.005}"), "--json"
    )
    assert ran.code == 3
    assert [f["artifact"] for f in ran.json["violations"]] == ["onnx/static_wi8_ai8"]
    assert {f["verdict"] for f in ran.json["unjudged"]} == {"inconclusive"}


def test_an_evaluation_of_another_file_does_not_count(edgeopt, make_bundle, evaluated, budget):
    bundle = make_bundle("b", {"onnx/fp32": 100}, artifacts={"onnx/fp32": {"parity": {"top1": None}}})
    document = evaluated(bundle, {"onnx/fp32": {"cat": (500, 0, 0)}})
    document["artifacts"][0]["sha256"] = "0" * 64
    (bundle / "eval.json").write_text(json.dumps(document))
    ran = edgeopt("gate", bundle, "--budget", budget("accuracy_drop: {max: 0.01}"), "--json")
    assert ran.code == 4 and "of another file" in ran.json["unjudged"][0]["detail"]


def test_junit_and_summary(edgeopt, make_bundle, budget, tmp_path):
    text = "size: {max_bytes: 1300}\nmemory: {max_bytes: 5}"
    files = ["--junit", tmp_path / "g.xml", "--summary", tmp_path / "g.md"]
    name = {"model": {"name": "net|*<b>\u0007"}}
    bundle = make_bundle("b", SIZES, **name)
    ran = edgeopt("gate", bundle, "--budget", budget(text), *files)
    assert ran.code == 3, ran.err
    suite = ET.parse(tmp_path / "g.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("6", "2", "3")
    assert [c.tag for case in suite.iter("testcase") for c in case] == ["failure"] * 2 + ["error"] * 3
    assert "4,000 B" in suite.find(".//failure").get("message")
    summary = (tmp_path / "g.md").read_text()
    assert summary.startswith("## edgeopt gate: net\\|\\*\\<b\\>")
    assert summary.count("❌ exceeded") == 2 and "<details>" in summary
    edgeopt("gate", bundle, "--budget", budget(text), *files, "--inconclusive", "pass")
    assert ET.parse(tmp_path / "g.xml").getroot()[0].get("skipped") == "3"
    assert (tmp_path / "g.md").read_text() == summary, "written anew, not added to"


def test_annotations_on_github(edgeopt, make_bundle, budget):
    limits = budget("size: {max_bytes: 1300}\nmemory: {max_bytes: 5}")
    bundle = make_bundle("b", SIZES, model={"name": "n,e:t%\n::error::x"})
    ran = edgeopt.with_environment(GITHUB_ACTIONS="true")("gate", bundle, "--budget", limits)
    lines = [line for line in ran.out.splitlines() if line.startswith("::")]
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 2 + ["::warning"] * 3
    assert lines[0].startswith("::error title=edgeopt gate n%2Ce%3At%25 %3A%3Aerror%3A%3Ax::onnx/fp32: size.max_bytes")
    assert "::" not in edgeopt("gate", bundle, "--budget", limits).out.replace("::error::x", "")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda b: (b / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda b: (b / "manifest.json").write_text("{"), "is damaged"),
        (lambda b: (b / "manifest.json").write_text("{}"), "is no manifest"),
        (lambda b: (b / "net.fp32.onnx").unlink(), "no such file"),
        (lambda b: (b / "net.fp32.onnx").write_bytes(b"other"), "is not the file that the manifest describes"),
        (lambda b: (b / "eval.json").write_text("[]"), "expected a JSON object"),
    ],
)
def test_a_damaged_bundle_is_one_line(edgeopt, make_bundle, budget, damage, told):
    bundle = make_bundle("b", SIZES)
    damage(bundle)
    ran = edgeopt("gate", bundle, "--budget", budget("accuracy_drop: {max: 0.5}"), "--json")
    assert ran.code == 2 and told in ran.error


def test_an_artifact_outside_the_bundle_is_refused(edgeopt, make_bundle, budget):
    bundle = make_bundle("b", SIZES)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifacts"][0]["path"] = "../../etc/passwd"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ran = edgeopt("gate", bundle, "--budget", budget("size: {max_bytes: 5}"))
    assert ran.code == 2 and "leads out of the bundle" in ran.error


BLOCKED = """
import sys

ALLOWED = {"edgeopt", "click", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection",
           "yaml", "rich", "markdown_it", "mdurl", "pygments", "numpy", *sys.stdlib_module_names}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and not top.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not installed")


sys.meta_path.insert(0, Blocker())
sys.argv = ["edgeopt", *sys.argv[1:]]
from edgeopt.cli.main import main

main()
"""


def test_sizes_are_gated_without_any_runtime(make_bundle, budget, tmp_path):
    new, old = make_bundle("new", SIZES), make_bundle("old", SIZES)
    limits = budget("size: {max_bytes: 5000, max_ratio: 1.05}\nparity_snr_db: {min: 10}\nint8_coverage: {min: 0.5}")
    arguments = ["gate", new, "--budget", limits, "--baseline", old, "--summary", tmp_path / "g.md", "--json"]
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verdict"] == "pass"
    latency = budget("latency: {against: fp32, max_ratio: 1.05}")
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED, "gate", str(new), "--budget", str(latency), "--no-measure"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 4, ran.stderr


def convolutions(layers):
    """Return an ONNX file of so many convolutions."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        kernel = generator.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        last = "y" if i == layers - 1 else f"x{i + 1}"
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [last], pads=[1, 1, 1, 1]))
    shape = (1, 16, 48, 48)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x0", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def test_latency_is_measured_in_pairs(edgeopt, make_bundle, budget):
    files = {"onnx/fp32": convolutions(2), "onnx/static_wi8_ai8": convolutions(8)}
    new, old = make_bundle("new", files), make_bundle("old", {"onnx/fp32": convolutions(8)})
    text = """
    artifacts:
      onnx/static_wi8_ai8: {latency: {against: fp32, max_ratio: 1.05}}
      onnx/fp32: {latency: {against: baseline, max_ratio: 1.05}}
    """
    ran = edgeopt("gate", new, "--budget", budget(text), "--baseline", old, "--json", "--max-seconds", "6")
    assert ran.code == 3, ran.out + ran.err
    (slow,) = ran.json["violations"]
    assert slow["artifact"] == "onnx/static_wi8_ai8" and slow["measured"] > 1.5 and "launches" in slow["detail"]
    (fast,) = [*ran.json["passed"], *ran.json["unjudged"]]  # on a busy machine the few launches may not settle it
    assert fast["artifact"] == "onnx/fp32" and fast["measured"] < 1 and "against net.fp32.onnx" in fast["detail"]
