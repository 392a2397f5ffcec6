"""What every runtime gives back for an artifact."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgeopt.core.model import TensorSpec

Arrays = dict[str, np.ndarray]


class Session(Protocol):
    """A loaded artifact. Arrays have the shapes and dtypes that `inputs` and `outputs` declare, batch included."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run once.

        Raises:
            ArtifactError: the artifact cannot be executed on these inputs.
        """
        ...
