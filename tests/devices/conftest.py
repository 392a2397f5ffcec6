from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError
from edgeopt.core.formats import FORMATS
from edgeopt.devices import runner
from edgeopt.worker import Worker

torch.set_num_threads(1)
ENGINES = {"onnx": "onnxruntime", "litert": "litert", "executorch": "executorch"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


@pytest.fixture(scope="session")
def artifact(format_worker: Callable[[str], Worker], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One small artifact of each format, made once in a session."""
    folder = tmp_path_factory.mktemp("artifacts")

    def get(form: str) -> Path:
        path = folder / f"net{FORMATS[form].suffix}"
        program = folder / "net.pt2"
        if not program.exists():
            torch.export.save(torch.export.export(Net().eval(), (torch.rand(1, 3, 8, 8),)), program)
        if not path.exists():
            request = {
                "name": "net",
                "program": str(program),
                "inputs": [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float32", "layout": "NCHW"}],
                "outputs": [{"name": "scores", "shape": [1, 5], "dtype": "float32"}],
                "precision": "fp32",
                "out": str(path),
            }
            format_worker(form).call(
                "edgeopt.tasks.export:export",
                {"format_name": form, "request": request},
                what=f"{form} export",
                log=folder / f"{form}.log",
                failure=ConversionError,
            )
        return path

    return get


@pytest.fixture
def run_runner(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the runner as its own process and return its one answer."""

    def run(job: Any, python: str = sys.executable, as_file: bool = False) -> dict[str, Any]:
        content = job if isinstance(job, bytes) else json.dumps(job).encode()
        arguments = []
        if as_file:
            (tmp_path / "job.json").write_bytes(content)
            arguments = [str(tmp_path / "job.json")]
        ran = subprocess.run([python, runner.__file__, *arguments], input=content, capture_output=True, timeout=120)
        lines = [n for n in ran.stdout.decode().splitlines() if n.startswith(runner.SENTINEL)]
        assert len(lines) == 1, ran
        assert b"Traceback" not in ran.stderr
        answer: dict[str, Any] = json.loads(lines[0][len(runner.SENTINEL) :])
        assert ran.returncode == (1 if "error" in answer else 0)
        return answer

    return run


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
