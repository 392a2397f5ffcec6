"""How near an artifact's outputs are to the original's, read from disk batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    "dynamic_wi8_afp32": Threshold(12.0, 0.90),
    "static_wi8_ai8": Threshold(10.0, 0.90),
}


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0
    finite: bool = True

    def add(self, reference: np.ndarray, actual: np.ndarray) -> None:
        if not np.array_equal(np.isfinite(reference), np.isfinite(actual)):
            self.finite = False
        both = np.isfinite(reference) & np.isfinite(actual)
        a, b = reference[both].astype(np.float64), actual[both].astype(np.float64)
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        difference = a - b
        self.noise += float(difference @ difference)
        if difference.size:
            self.max_abs = max(self.max_abs, float(np.abs(difference).max()))

    def snr_db(self) -> float:
        if not self.finite:
            return -EQUAL_DB
        if self.noise == 0:
            return EQUAL_DB
        if self.signal == 0:
            return -EQUAL_DB
        return min(EQUAL_DB, max(-EQUAL_DB, 10 * math.log10(self.signal / self.noise)))

    def cosine(self) -> float:
        if self.noise == 0:
            return 1.0
        norm = math.sqrt(self.signal * self.other)
        return self.product / norm if norm else 0.0


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
    """
    per_output: dict[str, dict[str, float | None]] = {}
    for spec in outputs:
        sums = _Sums()
        for a, b in _batches(reference, actual, spec):
            sums.add(a.ravel(), b.ravel())
        per_output[spec.name] = {"snr_db": sums.snr_db(), "cosine": sums.cosine(), "max_abs": sums.max_abs}
    agreement, top1, reference_top1 = _answers(reference, actual, outputs, samples, labels, task)
    snr_db = min(_number(v["snr_db"]) for v in per_output.values())
    worst = min(per_output, key=lambda name: _number(per_output[name]["snr_db"]))
    reasons = []
    if snr_db == -EQUAL_DB:
        reasons.append(f"output {worst} holds NaN or infinity where the original does not, or signal where it is zero")
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
            sums = _Sums()
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
    arrays = {f"input.{n}": np.load(work / "inputs" / f"{n}.npy", mmap_mode="r")[index] for n in inputs}
    for spec in outputs:
        arrays[f"reference.{spec.name}"] = np.load(work / "reference" / f"{spec.name}.npy", mmap_mode="r")[index]
        arrays[f"actual.{spec.name}"] = np.load(actual / f"{spec.name}.npy", mmap_mode="r")[index]
    np.savez(path, **arrays)


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _batches(reference: Path, actual: Path, spec: TensorSpec) -> zip[tuple[np.ndarray, np.ndarray]]:
    a = np.load(reference / f"{spec.name}.npy", mmap_mode="r")
    b = np.load(actual / f"{spec.name}.npy", mmap_mode="r")
    return zip(a, b, strict=True)


def _answers(
    reference: Path,
    actual: Path,
    outputs: tuple[TensorSpec, ...],
    samples: int,
    labels: Sequence[int],
    task: str,
) -> tuple[float | None, float | None, float | None]:
    """Return top-1 agreement, and top-1 accuracy of artifact and original, of the first output."""
    spec = outputs[0]
    generic = task == "generic" and len(outputs) == 1 and len(spec.shape) == 2 and spec.shape[1] > 1
    if task not in CLASSIFICATION and not generic:
        return None, None, None
    a = np.concatenate([x.argmax(-1) for x, _ in _batches(reference, actual, spec)])[:samples]
    b = np.concatenate([x.argmax(-1) for _, x in _batches(reference, actual, spec)])[:samples]
    agreement = float((a == b).mean())
    if len(labels) != samples or min(labels, default=-1) < 0 or a.ndim != 1:
        return agreement, None, None
    truth = np.asarray(labels)
    return agreement, float((b == truth).mean()), float((a == truth).mean())
