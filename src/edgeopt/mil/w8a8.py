"""Eight-bit activations and weights for an existing float package, without a Mac.

coremltools measures activation ranges by running the model, which needs macOS, and its recorder keeps only the last
sample's range; it also rounds every range to half precision, which a single-precision program then refuses. Its graph
passes are sound, so they are given ranges measured here, in the program's own precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coremltools.optimize.coreml as cto
import numpy as np
from coremltools.models import MLModel
from coremltools.optimize import _utils as optimize_utils
from coremltools.optimize.coreml import _post_training_quantization as passes
from numpy.typing import NDArray

from edgeopt.core.errors import ConversionError
from edgeopt.mil.executor import declares_half
from edgeopt.mil.package import load_package
from edgeopt.mil.ranges import Range


@contextmanager
def _given_ranges(ranges: Mapping[str, Range], dtype: str) -> Iterator[None]:
    """Let coremltools' activation passes use `ranges` instead of running the model."""

    def stats(*_: Any, **__: Any) -> dict[str, dict[str, float]]:
        return {name: {"rmin": r.low, "rmax": r.high} for name, r in ranges.items()}

    def extremes(activation_stats: Mapping[str, Mapping[str, float]], var_name: str) -> NDArray[Any]:
        return np.array([activation_stats[var_name]["rmin"], activation_stats[var_name]["rmax"]], dtype=dtype)

    measure, read = passes._get_activation_calibration_stats, optimize_utils.get_min_and_max_values
    passes._get_activation_calibration_stats, optimize_utils.get_min_and_max_values = stats, extremes
    try:
        yield
    finally:
        passes._get_activation_calibration_stats, optimize_utils.get_min_and_max_values = measure, read


def quantize_package(
    package: Path,
    out: Path,
    ranges: Mapping[str, Range],
    *,
    symmetric: bool = True,
    weights: bool = True,
    weight_threshold: int = 0,
) -> None:
    """Write a copy of a float package with int8 activations and, unless declined, int8 weights per channel.

    Args:
        package: fp32 or fp16 `.mlpackage`.
        out: where the result goes.
        ranges: from `activation_ranges` on the same package.
        symmetric: whether activations have zero point 0, as Apple recommends; without, ranges that lie on one side of
            zero keep all 256 steps.
        weights: whether weights become int8 too.
        weight_threshold: weights with fewer elements stay in float.

    Raises:
        ArtifactError: the package is damaged.
        ConversionError: coremltools refuses, or a range is missing.
    """
    dtype = "float16" if declares_half(load_package(package).body) else "float32"
    model = MLModel(str(package), skip_model_load=True)
    mode = "linear_symmetric" if symmetric else "linear"
    activation = cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(mode=mode))
    try:
        with _given_ranges(ranges, dtype):
            model = cto.linear_quantize_activations(model, activation, sample_data=[])
        if weights:
            config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=weight_threshold)
            model = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))
    except (ValueError, TypeError, AssertionError, RuntimeError, KeyError) as error:
        raise ConversionError(f"coremltools cannot quantize {package}: {error}") from error
    model.save(str(out))
