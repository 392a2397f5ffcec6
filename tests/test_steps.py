"""What a result can do without may fail; a run that was stopped stays stopped."""

from __future__ import annotations

import pytest

from edgeopt.core.errors import ArtifactError, CancelledRunError
from edgeopt.steps import dispensable


def test_what_is_dispensable_may_fail():
    with dispensable():
        raise ArtifactError("no kernel")
    with pytest.raises(ZeroDivisionError), dispensable():
        raise ZeroDivisionError


def test_a_stopped_run_stays_stopped():
    with pytest.raises(CancelledRunError), dispensable():
        raise CancelledRunError("stopped")
