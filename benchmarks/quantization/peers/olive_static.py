"""Olive's OnnxStaticQuantization pass, by its own workflow; `per_channel` is off where nobody asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import torch
from job import Job, run
from olive.data.registry import Registry
from olive.workflows import run as run_workflow


class Inputs(torch.utils.data.Dataset[Any]):
    """Calibration inputs, unbatched as Olive's loader wants them."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
        return {name: array[0] for name, array in self.batches[index].items()}, 0


def make(job: Job) -> dict[str, Any]:
    """Run a workflow of one pass on the float ONNX file."""
    batches = list(job.calibration())

    @Registry.register_dataset(name="calibration_inputs")  # type: ignore[untyped-decorator]
    def calibration_inputs(**_: Any) -> Inputs:
        return Inputs(batches)

    folder = job.out.with_name("olive")
    run_workflow(
        {
            "input_model": {"type": "ONNXModel", "model_path": job.float_file("onnx")},
            "systems": {
                "host": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                }
            },
            "data_configs": [
                {
                    "name": "calibration",
                    "type": "DataContainer",
                    "load_dataset_config": {"type": "calibration_inputs"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
                }
            ],
            "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration", **job.settings}},
            "host": "host",
            "target": "host",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
            "log_severity_level": 2,
        }
    )
    produced = next(Path(folder, "out").rglob("*.onnx"))
    onnx.save_model(onnx.load(str(produced)), str(job.out))  # whole: Olive keeps weights in a file beside it
    shutil.rmtree(folder)
    return {}


if __name__ == "__main__":
    run(make, "olive-ai", "onnxruntime")
