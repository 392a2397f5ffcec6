"""Times files made of pruned networks against one made of the network before."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from edgeopt import plugins
from edgeopt.core.artifact import ExportRequest
from edgeopt.core.formats import format_named
from edgeopt.core.model import TensorSpec
from edgeopt.tasks.speed import compare_speed
from edgeopt.training.network import examples, outputs_of

SECONDS = 1.0
SECONDS_AGAIN = 3.0


class SpeedOfFiles:
    """Exports networks in float32 and times each file against the first network's, in turns on one thread here.

    Args:
        network: that the others are compared with.
        inputs: of all.
        format_name: of the files.
        samples: folder with `<input>.npy` of shape (batches, *input shape).
        folder: to write to; it is made.

    Raises:
        MissingBackendError: the format's converter or runtime is not installed.
    """

    def __init__(
        self, network: GraphModule, inputs: tuple[TensorSpec, ...], format_name: str, samples: Path, folder: Path
    ) -> None:
        self.format = format_named(format_name)
        self.exporter = plugins.find("exporters", format_name)
        plugins.find("runtimes", self.format.runtime)
        self.inputs, self.samples, self.folder = inputs, samples, folder
        folder.mkdir()
        with torch.no_grad():
            made = outputs_of(network, examples(inputs))
        self.outputs = tuple(
            TensorSpec(f"output_{i}", tuple(t.shape), str(t.dtype).removeprefix("torch.")) for i, t in enumerate(made)
        )
        self.count = 0
        self.dense = self._export(network)

    def __call__(self, network: GraphModule, again: bool) -> dict[str, Any]:
        """Return `ratio` of the times and the number of `pairs` of calls; with `again`, of three times as many."""
        artifact = self._export(network)
        found = compare_speed(
            runtime=self.format.runtime,
            artifact=str(artifact),
            against=str(self.dense),
            inputs=[s.to_json() for s in self.inputs],
            outputs=[s.to_json() for s in self.outputs],
            inputs_folder=str(self.samples),
            seconds=SECONDS_AGAIN if again else SECONDS,
        )
        artifact.unlink()
        return found

    def record(self) -> dict[str, Any]:
        """Return where and how it was measured."""
        machine = {"system": platform.system(), "processor": platform.machine(), "host": platform.node()}
        return {"format": self.format.name, "precision": "fp32", "runtime": self.format.runtime, "threads": 1} | machine

    def _export(self, network: GraphModule) -> Path:
        self.count += 1
        program = self.folder / f"{self.count}.pt2"
        with torch.no_grad():
            torch.export.save(torch.export.export(network, examples(self.inputs)), program)
        out = self.folder / f"{self.count}{self.format.suffix}"
        request = ExportRequest(
            name="pruned",
            program=str(program),
            inputs=self.inputs,
            outputs=self.outputs,
            precision="fp32",
            out=str(out),
        )
        self.exporter.export(request)
        program.unlink()
        return out
