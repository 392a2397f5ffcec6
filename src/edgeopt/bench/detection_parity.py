"""How near an artifact's detections are to the original's: as objects, since neither order nor count is certain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeopt.bench.detections import overlaps
from edgeopt.bench.parity import EQUAL_DB, Sums, Threshold
from edgeopt.core.arrays import array_file
from edgeopt.core.artifact import Parity
from edgeopt.core.detection import DETECTIONS
from edgeopt.core.model import TensorSpec

SAME_OBJECT = 0.5
"""Intersection over union from which two boxes of a class are one object's."""
SAME_BOX = 0.5
"""Pixels by which sides may differ where a box has no area to overlap."""
NOTHING_FOUND = (
    "neither it nor the original finds anything in the inputs compared, which proves nothing: give --data of what it "
    "is to find"
)


def compare(
    reference: Path,
    actual: Path,
    outputs: tuple[TensorSpec, ...],
    *,
    samples: int,
    runtime: str,
    inputs: str,
    threshold: Threshold,
) -> tuple[Parity, dict[str, int]]:
    """Compare two folders of stored outputs; returns the counts of detections too.

    The original's detections are taken from the surest on, each with the artifact's nearest of its class that is still
    free. Agreement is the share of both sides' detections that have a partner; SNR is over the partners' boxes and
    scores, and over what else belongs to them.

    Args:
        reference, actual: folders of `detections.npy` `(batches, 1, rows, 6)`, whose empty rows have a score of zero,
            and of arrays with a column per row `(batches, 1, n, rows)`, or with none.
        outputs: the artifact's specifications.
        samples: how many inputs there are.
        runtime: that executed the artifact.
        inputs: `data` or `random`.
        threshold: to pass.
    """
    stored = [
        {s.name: np.load(array_file(folder, s.name), mmap_mode="r") for s in outputs} for folder in (reference, actual)
    ]
    rows = next(s.shape[1] for s in outputs if s.name == DETECTIONS)
    each = [s.name for s in outputs if s.name != DETECTIONS and s.shape[2:] == (rows,)]
    whole = [s.name for s in outputs if s.name != DETECTIONS and s.name not in each]
    sums = {name: Sums() for name in ("boxes", "scores", *each, *whole)}
    counts = {"original": 0, "artifact": 0, "matched": 0}
    for index in range(len(stored[0][DETECTIONS])):
        a, b = ({name: np.asarray(array[index, 0]) for name, array in side.items()} for side in stored)
        table_a, table_b = (side[DETECTIONS][side[DETECTIONS][:, 4] != 0] for side in (a, b))
        own, others = _partners(table_a, table_b)
        sums["boxes"].add(table_a[own, :4].ravel(), table_b[others, :4].ravel())
        sums["scores"].add(table_a[own, 4], table_b[others, 4])
        for name in each:
            sums[name].add(a[name][:, own].ravel(), b[name][:, others].ravel())
        for name in whole:
            sums[name].add(a[name].ravel(), b[name].ravel())
        counts["original"] += len(table_a)
        counts["artifact"] += len(table_b)
        counts["matched"] += len(own)
    total = counts["original"] + counts["artifact"]
    agreement = 2 * counts["matched"] / total if total else 1.0
    decibels = {name: s.snr_db() for name, s in sums.items()}
    worst = min(decibels, key=decibels.__getitem__)
    reasons = []
    if not total:
        reasons.append(NOTHING_FOUND)
    if agreement < threshold.agreement:
        told = f"{counts['original']} detections and {counts['artifact']} of the artifact"
        reasons.append(f"{counts['matched']} of {told} agree: {agreement:.3f}, below {threshold.agreement:g}")
    if decibels[worst] == -EQUAL_DB:
        reasons.append(f"{worst} of detections hold NaN or infinity, or signal where the original has none")
    elif decibels[worst] < threshold.snr_db:
        reasons.append(f"SNR of {worst} of detections is {decibels[worst]:.1f} dB, below {threshold.snr_db:g}")
    parity = Parity(
        runtime=runtime,
        samples=samples,
        inputs=inputs,
        snr_db=round(decibels[worst], 3),
        cosine=min(s.cosine() for s in sums.values()),
        max_abs=max(s.max_abs for s in sums.values()),
        agreement=agreement,
        top1=None,
        reference_top1=None,
        passed=not reasons,
        reason="; ".join(reasons) or None,
        per_output={n: {"snr_db": decibels[n], "cosine": s.cosine(), "max_abs": s.max_abs} for n, s in sums.items()},
    )
    return parity, counts


def _partners(own: np.ndarray, others: np.ndarray) -> tuple[list[int], list[int]]:
    """Return indices of rows `[n, 6]` and `[m, 6]` that are one object's."""
    left, right = [], []
    free = np.ones(len(others), bool)
    for index, row in enumerate(own):
        shares = overlaps(row[:4], others[:, :4])
        shares = np.where(np.abs(others[:, :4] - row[:4]).max(1, initial=0) <= SAME_BOX, 1.0, shares)
        shares = np.where(free & (others[:, 5] == row[5]), shares, 0)
        if shares.size and shares.max() >= SAME_OBJECT:
            best = int(shares.argmax())
            free[best] = False
            left.append(index)
            right.append(best)
    return left, right
