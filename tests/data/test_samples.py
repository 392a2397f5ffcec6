from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data.source import Sample
from edgeopt.tasks.samples import Choice, store_inputs

STATE = TensorSpec("state", (2, 1, 3))


def _choice(*inputs):
    return Choice(
        range(3), lambda i: Sample({s.name: np.full(s.shape[1:], i, np.float32) for s in inputs}, None, str(i))
    )


def test_an_input_without_the_batch_of_the_others_is_told(tmp_path):
    inputs = (TensorSpec("x", (8, 4)), STATE)
    with pytest.raises(UsageError, match=r"input state has shape \[2, 1, 3\] where x has a batch of 8"):
        store_inputs(_choice(*inputs), inputs, tmp_path / "inputs")


def test_a_state_beside_a_batch_of_one_is_stored(tmp_path):
    inputs = (TensorSpec("x", (1, 4)), STATE)
    store_inputs(_choice(*inputs), inputs, tmp_path / "inputs")
    assert np.load(tmp_path / "inputs" / "state.npy").shape == (3, 2, 1, 3)
    assert np.load(tmp_path / "inputs" / "x.npy")[:, 0, 0].tolist() == [0, 1, 2]
