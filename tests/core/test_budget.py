"""Budgets: what may be written in them, which limits apply where, and how they are judged."""

from __future__ import annotations

import pytest

from edgeopt.core.budget import LatencyEvidence, Measurements, read_budget
from edgeopt.core.errors import UsageError
from edgeopt.core.paired import PairedAnswers


@pytest.fixture
def budget(tmp_path):
    def read(text, targets=("pixel-8", "raspberry-pi-5")):
        path = tmp_path / "budgets.yaml"
        path.write_text(text)
        return read_budget(path, targets)

    return read


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sizee: {max_bytes: 1}", "unknown option 'sizee'; did you mean 'size'"),
        ("size: {max_byte: 1}", "unknown option 'size.max_byte'; did you mean 'max_bytes'"),
        ("pixel-9: {size: {max_bytes: 1}}", "unknown option 'pixel-9'; did you mean 'pixel-8'"),
        ("pixel-8: {latenzy: {max_ratio: 1}}", "pixel-8: unknown option 'latenzy'; did you mean 'latency'"),
        ("size: {}", "give max_bytes or max_ratio"),
        ("size: {max_bytes: -3}", "size.max_bytes: Input should be greater than 0"),
        ("latency: {max_ms: 5}", "name it with device"),
        ("latency: {against: onnx/fp31, max_ratio: 1.1}", "found 'onnx/fp31'"),
        ("accuracy_drop: {max: 1.5}", "accuracy_drop.max"),
        ("artifacts: {onnx: {size: {max_bytes: 1}}}", "named FORMAT/PRECISION"),
        ("artifacts: {'onnx/*': {sise: {max_bytes: 1}}}", "unknown option"),
        ("{}", "holds no limit"),
        ("[1]", "expected a mapping"),
        ("size: [", "not valid YAML"),
        ("my-board: 3", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_one_line(budget, text, told):
    with pytest.raises(UsageError) as caught:
        budget(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_budget(tmp_path / "none.yaml")


NARROWED = """
size: {max_bytes: 100}
accuracy_drop: {max: 0.01}
artifacts:
  "*/fp32": {size: {max_bytes: 400}, accuracy_drop: null}
pixel-8:
  size: {max_bytes: 50}
my-board:
  artifacts: {"onnx/*": {size: {max_bytes: 7}}}
"""


@pytest.mark.parametrize(
    ("artifact", "target", "size", "drops"),
    [
        ("onnx/static_wi8_ai8", None, 100, True),
        ("onnx/fp32", None, 400, False),
        ("onnx/static_wi8_ai8", "pixel-8", 50, True),
        ("onnx/fp32", "pixel-8", 50, False),
        ("onnx/fp32", "my-board", 7, False),
        ("litert/fp32", "my-board", 400, False),
        ("onnx/fp32", "unknown", 400, False),
    ],
)
def test_limits_narrow_from_general_to_target_to_artifact(budget, artifact, target, size, drops):
    limits = budget(NARROWED).limits_for(artifact, target)
    assert limits.size.max_bytes == size and (limits.accuracy_drop is not None) == drops


def measured(**changed):
    values = {"name": "onnx/static_wi8_ai8", "size_bytes": 90, "baseline_bytes": 80, "snr_db": 31.0}
    return Measurements(**values | {"integer_ops": 18, "float_ops": 2} | changed)


@pytest.mark.parametrize(
    ("text", "given", "verdict", "margin"),
    [
        ("size: {max_bytes: 100}", {}, "pass", 10),
        ("size: {max_bytes: 90}", {}, "pass", 0),
        ("size: {max_bytes: 89}", {}, "fail", -1),
        ("size: {max_ratio: 1.2}", {}, "pass", 0.075),
        ("size: {max_ratio: 1.1}", {}, "fail", -0.025),
        ("size: {max_ratio: 1.1}", {"baseline_bytes": None}, "not measured", None),
        ("memory: {max_bytes: 10}", {"memory_bytes": 12}, "fail", -2),
        ("memory: {max_bytes: 10}", {}, "not measured", None),
        ("parity_snr_db: {min: 30}", {}, "pass", 1),
        ("parity_snr_db: {min: 32}", {}, "fail", -1),
        ("parity_snr_db: {min: 32}", {"snr_db": float("nan")}, "not measured", None),
        ("int8_coverage: {min: 0.9}", {}, "pass", 0),
        ("int8_coverage: {min: 0.95}", {}, "fail", -0.05),
        ("int8_coverage: {min: 0.95}", {"integer_ops": None}, "not measured", None),
        ("accuracy_drop: {max: 0.01}", {"answers": PairedAnswers(1000, 8, 0)}, "pass", 0.002),
        ("accuracy_drop: {max: 0.01}", {"answers": PairedAnswers(1000, 13, 0)}, "inconclusive", -0.003),
        ("accuracy_drop: {max: 0.01}", {"answers": PairedAnswers(1000, 30, 0)}, "fail", -0.02),
        ("accuracy_drop: {max: 0.01}", {}, "not measured", None),
        ("latency: {max_ratio: 1.05}", {"latency": LatencyEvidence("fail", 1.2)}, "fail", -0.15),
        ("latency: {max_ratio: 1.05}", {"latency": LatencyEvidence("inconclusive", 1.06)}, "inconclusive", -0.01),
        ("latency: {max_ratio: 1.05}", {}, "not measured", None),
        ("latency: {max_ms: 5, device: pi}", {"median_ms": {"pi": 4.0}}, "pass", 1),
        ("latency: {max_ms: 5, device: pi}", {"median_ms": {"local": 4.0}}, "not measured", None),
    ],
)
def test_every_limit_is_judged_with_its_margin(budget, text, given, verdict, margin):
    (finding,) = budget(text).judge([measured(**given)])
    assert finding.verdict == verdict
    assert finding.margin == (None if margin is None else pytest.approx(margin))


def test_integer_coverage_is_not_asked_of_floats(budget):
    assert budget("int8_coverage: {min: 0.9}").judge([measured(name="onnx/fp32", integer_ops=None)]) == []


def test_the_artifact_that_others_are_compared_with_is_not_compared_with_itself(budget):
    found = budget("latency: {against: fp32, max_ratio: 0.8}")
    assert found.judge([measured(name="onnx/fp32")]) == []
    assert len(found.judge([measured()])) == 1


def test_the_worst_class_is_named_and_many_classes_need_more_evidence(budget):
    limits = budget("worst_class_drop: {max: 0.05}")
    few = {"cat": PairedAnswers(100, 14, 0), "dog": PairedAnswers(100, 1, 0)}
    (finding,) = limits.judge([measured(per_class=few)])
    assert finding.verdict == "fail" and "class cat" in finding.detail and finding.measured == pytest.approx(0.14)
    many = few | {f"class {i}": PairedAnswers(100, 0, 0) for i in range(998)}
    (finding,) = limits.judge([measured(per_class=many)])
    assert finding.verdict == "inconclusive" and "would settle it" in finding.detail


def test_check_returns_every_violation_and_nothing_else(budget):
    limits = budget(
        "size: {max_bytes: 10}\nparity_snr_db: {min: 99}\nmemory: {max_bytes: 5}\naccuracy_drop: {max: 0.5}"
    )
    found = limits.check([measured(), measured(name="litert/fp32")])
    assert [(f.artifact, f.limit) for f in found] == [
        ("onnx/static_wi8_ai8", "size.max_bytes"),
        ("onnx/static_wi8_ai8", "parity_snr_db.min"),
        ("litert/fp32", "size.max_bytes"),
        ("litert/fp32", "parity_snr_db.min"),
    ]
