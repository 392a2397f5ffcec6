"""One process of several that train a stage together: `torchrun ... -m edgeopt.tasks.shared_training JOB`.

The job is a JSON file: arguments of `tasks.compress.stage`, where to tell progress, where to write the outcome. The
first process writes it; an error that all of them meet alike is told there, not raised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgeopt import worker
from edgeopt.core import errors
from edgeopt.core.errors import ConversionError, EdgeoptError

Record = dict[str, Any]


def launch(devices: int, arguments: Record, folder: Path) -> Record:
    """Start the processes by torchrun and return what the first one tells.

    Args:
        devices: how many processes.
        arguments: of `tasks.compress.stage`.
        folder: for the job and its outcome.

    Raises:
        EdgeoptError: as the stage raised it.
        ConversionError: a process ended without a word.
    """
    job, outcome = folder / "shared-training.json", folder / "shared-training.outcome.json"
    progress = worker.progress_file()
    told = {"devices": devices, "arguments": arguments, "outcome": str(outcome)}
    job.write_text(json.dumps(told | {"progress": None if progress is None else str(progress)}), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    threads = {"OMP_NUM_THREADS": str(arguments["threads"])}
    ran = subprocess.run([*command, "-m", __name__, str(job)], check=False, env=os.environ | threads)
    job.unlink()
    if ran.returncode or not outcome.exists():
        raise ConversionError(f"one of {devices} training processes ended with exit code {ran.returncode}")
    found: Record = json.loads(outcome.read_text(encoding="utf-8"))
    outcome.unlink()
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return found


def _main(path: Path) -> None:
    from edgeopt.sources.torchvision_ops import import_torchvision

    import_torchvision()  # lightning imports it
    from edgeopt.core.training import DistillOptions, FinetuneOptions
    from edgeopt.tasks.compress import stage
    from edgeopt.training.loop import on_devices

    job = json.loads(path.read_text(encoding="utf-8"))
    arguments = job["arguments"]
    kinds = {"finetune": FinetuneOptions, "distill": DistillOptions}
    settings = kinds[arguments["kind"]](**arguments["options"])
    first = os.environ["RANK"] == "0"
    if first and job["progress"] is not None:
        worker.report_to(Path(job["progress"]))
    try:
        fabric = on_devices(arguments["device"], job["devices"], settings)
        fabric.launch()
        outcome = stage(**arguments, fabric=fabric)
    except EdgeoptError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    if first:
        Path(job["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
