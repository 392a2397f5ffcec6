"""One process of several that train a stage together: `torchrun ... -m edgeopt.tasks.shared_training JOB`.

The job is a JSON file: arguments of `tasks.compress.stage`, where to tell progress, where to write the outcome. The
first process of each machine writes it; an error that all of them meet alike is told there, not raised.
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
from edgeopt.core.training import Nodes

Record = dict[str, Any]
MEETING_S = 900


def launch(arguments: Record, folder: Path) -> Record:
    """Start this machine's processes by torchrun and return what the first one tells.

    Args:
        arguments: of `tasks.compress.stage`.
        folder: for the job and its outcome.

    Raises:
        EdgeoptError: as the stage raised it.
        ConversionError: a process ended without a word, or other machines did not come.
    """
    job, outcome = folder / "shared-training.json", folder / "shared-training.outcome.json"
    progress = worker.progress_file()
    told = {"arguments": arguments, "outcome": str(outcome), "progress": None if progress is None else str(progress)}
    job.write_text(json.dumps(told), encoding="utf-8")
    devices, nodes = arguments["devices"], Nodes(**arguments["nodes"])
    command = [sys.executable, "-m", "torch.distributed.run", *_meeting(nodes), f"--nproc-per-node={devices}"]
    threads = {"OMP_NUM_THREADS": str(arguments["threads"])}
    ran = subprocess.run([*command, "-m", __name__, str(job)], check=False, env=os.environ | threads)
    job.unlink()
    if ran.returncode or not outcome.exists():
        ended = f"one of {devices * nodes.count} training processes ended with exit code {ran.returncode}"
        raise ConversionError(ended if nodes.count == 1 else f"{ended}; {_what_machines_need(nodes)}")
    found: Record = json.loads(outcome.read_text(encoding="utf-8"))
    outcome.unlink()
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return found


def _meeting(nodes: Nodes) -> list[str]:
    if nodes.count == 1:
        return ["--standalone"]
    assert nodes.rendezvous is not None
    host, _, port = nodes.rendezvous.rpartition(":")
    meeting = [f"--nnodes={nodes.count}", f"--node-rank={nodes.rank}", f"--master-addr={host}", f"--master-port={port}"]
    return [*meeting, f"--rdzv-conf=timeout={MEETING_S}"]


def _what_machines_need(nodes: Nodes) -> str:
    return (
        f"give the same command on all {nodes.count} machines within {MEETING_S // 60} minutes, each with its own "
        "--node-rank, and --force on all where one has this stage in its cache"
    )


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
    first = os.environ["LOCAL_RANK"] == "0"
    if first and job["progress"] is not None:
        worker.report_to(Path(job["progress"]))
    try:
        fabric = on_devices(arguments["device"], arguments["devices"], settings, arguments["nodes"]["count"])
        fabric.launch()
        outcome = stage(**arguments, fabric=fabric)
    except EdgeoptError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    if first:
        Path(job["outcome"]).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
