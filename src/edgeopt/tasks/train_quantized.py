"""Fine-tunes a stored program with quantization in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt.core.arrays import LABELS, array_file
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.exporters.program import load_program
from edgeopt.stages.train_quantized import TrainingOptions
from edgeopt.stages.train_quantized import train_quantized as train


def train_quantized(
    *,
    program: str,
    inputs: list[dict[str, Any]],
    samples: str,
    precision: str,
    options: dict[str, Any],
    training: dict[str, Any],
    task: str,
    out: str,
    checkpoint: str | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Write the trained float program, weights on the grid, to `out`; returns its losses and time.

    Args:
        program: `.pt2` file in float.
        inputs: its specifications.
        samples: folder with `<input>.npy` of shape (batches, *input shape), and `labels.npy` where there are labels.
        precision: to train for.
        options: of quantization.
        training: `TrainingOptions`.
        task: of the model.
        out: file to write.
        checkpoint: file to save to and to resume from.
        threads: of PyTorch.
    """
    torch.set_num_threads(threads)
    specs = tuple(TensorSpec.from_json(s) for s in inputs)
    arrays = {s.name: np.load(array_file(samples, s.name), mmap_mode="r") for s in specs}
    path = Path(samples, f"{LABELS}.npy")
    trained = train(
        load_program(program),
        arrays,
        specs,
        scheme_of(precision),
        QuantizationOptions(**options),
        TrainingOptions(**training),
        [int(v) for v in np.load(path)] if path.exists() else None,
        task=task,
        checkpoint=Path(checkpoint) if checkpoint else None,
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(trained.program, out)
    return {
        "loss_before": trained.loss_before,
        "loss_after": trained.loss_after,
        "steps": trained.steps,
        "seconds": trained.seconds,
    }
