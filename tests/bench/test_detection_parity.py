"""Detections are compared as objects: in any order, each with its own."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.bench.detection_parity import compare
from edgeopt.bench.parity import EQUAL_DB, Threshold
from edgeopt.core.model import TensorSpec

ROWS = 6
OUTPUTS = (
    TensorSpec("detections", (1, ROWS, 6)),
    TensorSpec("masks", (1, 2, ROWS)),
    TensorSpec("prototypes", (1, 2, 3, 3)),
)
FOUND = np.array(
    [[0, 0, 10, 10, 0.9, 1], [20, 20, 40, 44, 0.8, 0], [21, 20, 41, 44, 0.7, 1], [5, 5, 5, 5, 0.6, 2]], np.float32
)
MASKS = np.arange(8, dtype=np.float32).reshape(2, 4)


def _store(folder, rows, masks, prototype=1.0):
    folder.mkdir()
    table, columns = np.zeros((1, 1, ROWS, 6), np.float32), np.zeros((1, 1, 2, ROWS), np.float32)
    table[0, 0, : len(rows)] = rows
    columns[0, 0, :, : len(rows)] = masks
    np.save(folder / "detections.npy", table)
    np.save(folder / "masks.npy", columns)
    np.save(folder / "prototypes.npy", np.full((1, 1, 2, 3, 3), prototype, np.float32))
    return folder


@pytest.fixture
def compared(tmp_path):
    reference = _store(tmp_path / "reference", FOUND, MASKS)

    def against(rows, masks, prototype=1.0):
        actual = _store(tmp_path / f"actual{len(list(tmp_path.iterdir()))}", rows, masks, prototype)
        told = {"samples": 1, "runtime": "x", "inputs": "data", "threshold": Threshold(60.0, 0.95)}
        return compare(reference, actual, OUTPUTS, **told)

    return against


def test_another_order_is_the_same(compared):
    order = [2, 0, 3, 1]
    parity, counts = compared(FOUND[order], MASKS[:, order])
    assert parity.passed and parity.snr_db == EQUAL_DB and parity.agreement == 1
    assert counts == {"original": 4, "artifact": 4, "matched": 4}


def test_one_more_one_less_and_another_class(compared):
    parity, counts = compared(FOUND[:3], MASKS[:, :3])
    assert counts["matched"] == 3 and parity.agreement == pytest.approx(6 / 7)
    assert not parity.passed and "3 of 4 detections and 3 of the artifact agree: 0.857, below 0.95" in parity.reason
    more = np.concatenate([FOUND, [[50, 50, 60, 60, 0.9, 1]]])
    assert compared(more, np.pad(MASKS, ((0, 0), (0, 1))))[1] == {"original": 4, "artifact": 5, "matched": 4}
    other = FOUND.copy()
    other[1, 5] = 2
    assert compared(other, MASKS)[1]["matched"] == 3


def test_boxes_scores_and_masks_that_differ(compared):
    for column, name in ((2, "boxes"), (4, "scores")):
        moved = FOUND.copy()
        moved[0, column] *= 0.9
        parity, counts = compared(moved, MASKS)
        assert counts["matched"] == 4 and not parity.passed and f"SNR of {name} of detections is" in parity.reason
    parity, _ = compared(FOUND, MASKS * 1.1)
    assert "SNR of masks of detections is 20.0 dB, below 60" in parity.reason
    parity, _ = compared(FOUND, MASKS, prototype=np.nan)
    assert not parity.passed and "prototypes of detections hold NaN" in parity.reason


def test_nothing_found_proves_nothing(tmp_path):
    folders = [_store(tmp_path / n, FOUND[:0], MASKS[:, :0]) for n in ("a", "b")]
    told = {"samples": 1, "runtime": "x", "inputs": "random", "threshold": Threshold(60.0, 0.99)}
    parity, counts = compare(*folders, OUTPUTS, **told)
    assert not parity.passed and counts["original"] == 0
    assert "proves nothing: give --data" in parity.reason
