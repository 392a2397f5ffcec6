"""How near an artifact's outputs are to the original's, read from disk batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.core.arrays import array_file, plain_name
from edgeopt.core.artifact import Parity
from edgeopt.core.model import TensorSpec

EQUAL_DB = 300.0
CLASSIFICATION = ("image-classification", "text-classification", "token-classification")


@dataclass(frozen=True)
class Threshold:
    """What a precision must reach. SNR in dB; agreement as a share of samples, for classification tasks."""

    snr_db: float
    agreement: float


THRESHOLDS = {
    "fp32": Threshold(60.0, 0.99),
    "fp16": Threshold(30.0, 0.97),
    "static_wi8_ai8": Threshold(10.0, 0.90),
    "static_wi8_ai16": Threshold(15.0, 0.93),
    "dynamic_wi8_afp32": Threshold(12.0, 0.90),
    "weight_only_wi8_afp32": Threshold(15.0, 0.93),
    "weight_only_wi4_afp32": Threshold(5.0, 0.75),
    "palettized_w6": Threshold(12.0, 0.90),
    "palettized_w4": Threshold(5.0, 0.75),
    "auto": Threshold(10.0, 0.90),
}


def threshold_of(precision: str, snr_db: float | None, agreement: float | None) -> Threshold:
    """Return what a precision must reach, or what is asked for in its place."""
    own = THRESHOLDS[precision]
    return Threshold(
        own.snr_db if snr_db is None else snr_db,
        own.agreement if agreement is None else agreement,
    )


@dataclass
class Sums:
    """Running sums over pairs of arrays, of which SNR and cosine are made."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0
    same_infinities: bool = True
    reference_nan: bool = False

    def add(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Take in two arrays of one shape."""
        both = np.isfinite(reference) & np.isfinite(actual)
        self.reference_nan |= bool(np.isnan(reference).any())
        self.same_infinities &= np.array_equal(reference[~both], actual[~both])
        a, b = reference[both].astype(np.float64), actual[both].astype(np.float64)
        with np.errstate(over="ignore"):
            difference = a - b
            self.signal += float(a @ a)
            self.other += float(b @ b)
            self.product += float(a @ b)
            self.noise += float(difference @ difference)
        if difference.size:
            largest = float(np.abs(difference).max())
            self.max_abs = max(self.max_abs, min(largest, float(np.finfo(np.float64).max)))

    def snr_db(self) -> float:
        """Return the ratio of signal to noise in dB; `EQUAL_DB` where there is no noise."""
        if self.reference_nan or not self.same_infinities or not math.isfinite(self.noise):
            return -EQUAL_DB
        if self.noise == 0:
            return EQUAL_DB
        if self.signal == 0:
            return -EQUAL_DB
        return min(EQUAL_DB, max(-EQUAL_DB, 10 * (math.log10(self.signal) - math.log10(self.noise))))

    def cosine(self) -> float:
        """Return the cosine of both, 1 where they are equal."""
        if self.noise == 0:
            return 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.other)
        return self.product / norm if norm and math.isfinite(norm) else 0.0


def compare(
    reference: Path,
    actual: Path,
    outputs: tuple[TensorSpec, ...],
    *,
    samples: int,
    labels: Sequence[int],
    task: str,
    runtime: str,
    inputs: str,
    threshold: Threshold,
    half: bool = False,
) -> Parity:
    """Compare two folders of `<output>.npy`, each of shape (batches, *output shape).

    Args:
        reference, actual: outputs of the original and of the artifact.
        outputs: the original's specifications.
        samples: how many there are, without the filling of the last batch.
        labels: class index per sample, or empty.
        task: decides whether a top-1 answer exists.
        runtime: that executed the artifact.
        inputs: `data` or `random`.
        threshold: to pass.
        half: whether the artifact computes in float16, for what a failure tells.
    """
    per_output: dict[str, dict[str, float | None]] = {}
    not_a_number = []
    for spec in outputs:
        sums = Sums()
        for a, b in _batches(reference, actual, spec):
            sums.add(a.ravel(), b.ravel())
        if sums.reference_nan:
            not_a_number.append(spec.name)
        per_output[spec.name] = {"snr_db": sums.snr_db(), "cosine": sums.cosine(), "max_abs": sums.max_abs}
    agreement, top1, reference_top1 = _answers(reference, actual, outputs, samples, labels, task)
    snr_db = min(_number(v["snr_db"]) for v in per_output.values())
    worst = min(per_output, key=lambda name: _number(per_output[name]["snr_db"]))
    reasons = []
    if not_a_number:
        reasons.append(f"output {not_a_number[0]} of the original is NaN on some of these inputs")
    elif snr_db == -EQUAL_DB:
        reasons.append(f"output {worst} holds NaN or infinity where the original does not, or signal where it is zero")
        if half:
            reasons.append("it computes in float16, which ends at 65504: values inside may pass that; use fp32")
    elif snr_db < threshold.snr_db:
        reasons.append(f"SNR of {worst} is {snr_db:.1f} dB, below {threshold.snr_db:g}")
    if agreement is not None and task in CLASSIFICATION and agreement < threshold.agreement:
        reasons.append(f"top-1 agreement is {agreement:.3f}, below {threshold.agreement:g}")
    return Parity(
        runtime=runtime,
        samples=samples,
        inputs=inputs,
        snr_db=round(snr_db, 3),
        cosine=min(_number(v["cosine"]) for v in per_output.values()),
        max_abs=max(_number(v["max_abs"]) for v in per_output.values()),
        agreement=agreement,
        top1=top1,
        reference_top1=reference_top1,
        passed=not reasons,
        reason="; ".join(reasons) or None,
        per_output=per_output,
    )


def worst_sample(reference: Path, actual: Path, outputs: tuple[TensorSpec, ...]) -> int:
    """Return the index of the batch with the lowest SNR over all outputs."""
    worst, worst_snr = 0, math.inf
    for spec in outputs:
        for index, (a, b) in enumerate(_batches(reference, actual, spec)):
            sums = Sums()
            sums.add(a.ravel(), b.ravel())
            if sums.snr_db() < worst_snr:
                worst, worst_snr = index, sums.snr_db()
    return worst


def read_labels(folder: Path) -> list[int]:
    """Return the labels stored with inputs; -1 where a sample has none."""
    path = folder / "labels.npy"
    return [int(v) for v in np.load(path)] if path.exists() else []


def keep_evidence(work: Path, actual: Path, inputs: Sequence[str], outputs: tuple[TensorSpec, ...], path: Path) -> None:
    """Write the batch with the worst output to one `.npz`: inputs, and each output's `reference` and `actual`."""
    path.parent.mkdir(exist_ok=True)
    index = worst_sample(work / "reference", actual, outputs)
    arrays = {f"input.{plain_name(n)}": np.load(array_file(work / "inputs", n), mmap_mode="r")[index] for n in inputs}
    for spec in outputs:
        for kind, folder in (("reference", work / "reference"), ("actual", actual)):
            arrays[f"{kind}.{plain_name(spec.name)}"] = np.load(array_file(folder, spec.name), mmap_mode="r")[index]
    np.savez(path, **arrays)


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _batches(reference: Path, actual: Path, spec: TensorSpec) -> zip[tuple[np.ndarray, np.ndarray]]:
    a = np.load(array_file(reference, spec.name), mmap_mode="r")
    b = np.load(array_file(actual, spec.name), mmap_mode="r")
    return zip(a, b, strict=True)


def _answers(
    reference: Path,
    actual: Path,
    outputs: tuple[TensorSpec, ...],
    samples: int,
    labels: Sequence[int],
    task: str,
) -> tuple[float | None, float | None, float | None]:
    """Return top-1 agreement, and top-1 accuracy of artifact and original, of the first output.

    An integer output of a classifier is the answer itself; one score per sample, or none, has no top-1.
    """
    spec = outputs[0]
    scores = spec.dtype.startswith("float")
    generic = task == "generic" and scores and len(outputs) == 1 and len(spec.shape) == 2
    if (task not in CLASSIFICATION and not generic) or (scores and (len(spec.shape) < 2 or spec.shape[-1] < 2)):
        return None, None, None
    pairs = [(_answer(x, scores), _answer(y, scores)) for x, y in _batches(reference, actual, spec)]
    a = np.concatenate([x for x, _ in pairs])[:samples]
    b = np.concatenate([y for _, y in pairs])[:samples]
    if not a.size:
        return None, None, None
    agreement = float((a == b).mean())
    if len(labels) != samples or min(labels, default=-1) < 0 or a.ndim != 1:
        return agreement, None, None
    truth = np.asarray(labels)
    return agreement, float((b == truth).mean()), float((a == truth).mean())


def _answer(output: np.ndarray, scores: bool) -> np.ndarray:
    if scores:
        return np.asarray(output.argmax(-1))
    return output[:, 0] if output.ndim == 2 and output.shape[1] == 1 else np.atleast_1d(output)
