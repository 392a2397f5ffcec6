from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.bench.parity import EQUAL_DB, THRESHOLDS, Threshold, compare, keep_evidence, read_labels, worst_sample
from edgeopt.core.formats import PRECISIONS
from edgeopt.core.model import TensorSpec

FP32 = THRESHOLDS["fp32"]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Compare dictionaries of arrays of shape (batches, *output shape)."""

    def check(reference, actual, *, task="generic", samples=None, labels=(), threshold=FP32):
        folder = tmp_path_factory.mktemp("outputs")
        for name, arrays in (("reference", reference), ("actual", actual)):
            (folder / name).mkdir()
            for output, array in arrays.items():
                np.save(folder / name / f"{output}.npy", array)
        specs = tuple(TensorSpec(n, a.shape[1:], a.dtype.name) for n, a in reference.items())
        count = samples or len(next(iter(reference.values())))
        result = compare(
            folder / "reference",
            folder / "actual",
            specs,
            samples=count,
            labels=labels,
            task=task,
            runtime="test",
            inputs="data",
            threshold=threshold,
        )
        json.dumps(result.to_json(), allow_nan=False)  # what the manifest holds must be JSON that anyone can read
        return result

    return check


def one(array):
    return {"output": np.asarray(array)}


numbers = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=numbers)
anything = hnp.arrays(np.float32, (2, 1, 3), elements=st.floats(width=32))


@given(arrays)
def test_equal_outputs_pass_exactly(check, array):
    result = check(one(array), one(array.copy()))
    assert result.passed and result.snr_db == EQUAL_DB and result.cosine == 1 and result.max_abs == 0


@given(arrays, st.floats(1, 100))
def test_snr_is_that_of_the_noise_that_was_added(check, array, wanted_db):
    signal = array.astype(np.float64) + 1
    noise = np.random.default_rng(0).standard_normal(array.shape)
    noise *= math.sqrt((signal**2).sum() / (noise**2).sum() / 10 ** (wanted_db / 10))
    result = check(one(signal), one(signal + noise), threshold=Threshold(wanted_db - 0.01, 0))
    assert result.snr_db == pytest.approx(wanted_db, abs=0.01)
    assert result.max_abs == pytest.approx(np.abs(noise).max())
    assert result.passed
    failed = check(one(signal), one(signal + noise), threshold=Threshold(wanted_db + 0.01, 0))
    assert not failed.passed and "SNR of output is" in failed.reason


@given(arrays, st.floats(0.001, 1000))
def test_snr_does_not_depend_on_the_unit(check, array, factor):
    reference = array.astype(np.float64) + 0.5
    actual = reference + 0.001
    a = check(one(reference), one(actual)).snr_db
    b = check(one(reference * factor), one(actual * factor)).snr_db
    assert a == pytest.approx(b, abs=0.05)


@settings(max_examples=300)
@given(anything, anything)
def test_any_two_arrays_are_judged(check, reference, actual):
    result = check(one(reference), one(actual))
    assert -EQUAL_DB <= result.snr_db <= EQUAL_DB and -1.000001 <= result.cosine <= 1.000001
    if np.isnan(reference).any() or not np.array_equal(np.isfinite(reference), np.isfinite(actual)):
        assert not result.passed
    if result.passed:
        assert np.allclose(
            reference, actual, rtol=0.01, atol=0.01 * np.abs(reference[np.isfinite(reference)]).max(initial=0)
        )
        infinite = ~np.isfinite(reference)
        assert np.array_equal(reference[infinite], actual[infinite])


@pytest.mark.parametrize(
    ("reference", "actual"),
    [
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([1.0, np.inf], [1.0, np.nan]),
        ([1.0, np.nan], [1.0, np.inf]),
        ([np.nan, np.nan], [np.nan, np.nan]),
        ([np.inf, 1.0], [1.0, np.inf]),
        ([0.0, 0.0], [0.0, 1e-20]),
        ([1e300, 1.0], [-1e300, 1.0]),
    ],
)
def test_what_no_number_can_excuse(check, reference, actual):
    result = check(one(np.array([[reference]])), one(np.array([[actual]])))
    assert not result.passed and result.reason


def test_masked_logits_may_be_minus_infinity_in_both(check):
    array = np.array([[[1.0, -np.inf, 2.0]]], np.float32)
    assert check(one(array), one(array + np.float32(1e-6))).passed


def test_a_model_that_gives_nan_is_told_as_the_models_fault(check):
    result = check(one(np.full((2, 1, 3), np.nan)), one(np.full((2, 1, 3), np.nan)))
    assert not result.passed and "the original" in result.reason


def test_the_worst_output_counts_and_is_named(check):
    rng = np.random.default_rng(0)
    reference = {n: rng.standard_normal((4, 1, 5)) for n in ("boxes", "scores", "masks")}
    actual = {n: a + (0.1 if n == "scores" else 1e-9) for n, a in reference.items()}
    result = check(reference, actual)
    assert not result.passed and "SNR of scores" in result.reason
    assert result.snr_db == pytest.approx(result.per_output["scores"]["snr_db"], abs=0.001)
    assert set(result.per_output) == set(reference)


def test_top1_agreement_counts_samples_not_the_filling_of_the_last_batch(check):
    reference = np.eye(4, dtype=np.float32)[[[0, 1], [2, 2]]]  # two batches of two: three samples and one filling
    actual = reference.copy()
    actual[1, 1] = np.eye(4)[3]
    result = check(one(reference), one(actual), task="image-classification", samples=3, threshold=Threshold(-999, 0.99))
    assert result.agreement == 1 and result.passed and result.top1 is None


def test_disagreement_fails_a_classifier_whatever_its_snr(check):
    reference = np.array([[[1.0, 1.0001]]] * 10)
    actual = np.array([[[1.0001, 1.0]]] * 10)
    result = check(one(reference), one(actual), task="image-classification", labels=[1] * 10)
    assert result.snr_db > FP32.snr_db and not result.passed
    assert result.agreement == 0 and result.top1 == 0 and result.reference_top1 == 1
    assert "top-1 agreement is 0.000, below 0.99" in result.reason


@pytest.mark.parametrize("labels", [[], [1, -1, 0, 0]])
def test_accuracy_is_told_only_where_all_labels_are_known(check, labels):
    outputs = one(np.random.default_rng(0).standard_normal((4, 1, 3)))
    assert check(outputs, outputs, task="image-classification", labels=labels).top1 is None


def test_several_outputs_of_a_generic_model_have_no_top1(check):
    outputs = {"a": np.ones((2, 1, 3)), "b": np.ones((2, 1, 3))}
    assert check(outputs, outputs).agreement is None


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 1, 1), (3, 0), (3, 2, 0)])
@pytest.mark.parametrize("task", ["generic", "image-classification", "token-classification"])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
def test_outputs_of_any_rank_and_type(check, shape, task, dtype):
    outputs = one(np.ones(shape, dtype))
    assert check(outputs, outputs, task=task, labels=[0] * 3).passed


def test_every_precision_has_a_pass_mark_and_none_is_stricter_than_a_finer_one():
    assert set(THRESHOLDS) == set(PRECISIONS)
    marks = [THRESHOLDS[p].snr_db for p in ("fp32", "fp16", "dynamic_wi8_afp32", "static_wi8_ai8")]
    assert marks == sorted(marks, reverse=True)


def test_evidence_is_the_worst_batch_with_its_inputs(tmp_path):
    rng = np.random.default_rng(0)
    spec = TensorSpec("output", (1, 3))
    for name in ("inputs", "reference", "actual"):
        (tmp_path / name).mkdir()
    inputs, reference = rng.standard_normal((5, 1, 2)), rng.standard_normal((5, 1, 3))
    actual = reference.copy()
    actual[3] += 1
    np.save(tmp_path / "inputs" / "image.npy", inputs)
    np.save(tmp_path / "reference" / "output.npy", reference)
    np.save(tmp_path / "actual" / "output.npy", actual)
    assert worst_sample(tmp_path / "reference", tmp_path / "actual", (spec,)) == 3
    keep_evidence(tmp_path, tmp_path / "actual", ["image"], (spec,), tmp_path / "evidence" / "net.npz")
    kept = np.load(tmp_path / "evidence" / "net.npz")
    assert np.array_equal(kept["input.image"], inputs[3])
    assert np.array_equal(kept["reference.output"], reference[3]) and np.array_equal(kept["actual.output"], actual[3])


def test_inputs_without_labels(tmp_path):
    assert read_labels(tmp_path) == []
    np.save(tmp_path / "labels.npy", np.array([3, -1]))
    assert read_labels(tmp_path) == [3, -1]
