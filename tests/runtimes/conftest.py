from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError
from edgeopt.core.formats import FORMATS
from edgeopt.core.model import TensorSpec
from edgeopt.worker import Worker

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


INPUTS = (TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW"),)
OUTPUTS = (TensorSpec("scores", (1, 5)),)


@pytest.fixture(scope="session")
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture(scope="session")
def program(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 8, 8),)), path)
    return path


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def expected(net: nn.Module, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.from_numpy(image)).numpy()


@pytest.fixture(scope="session")
def artifact(
    format_worker: Callable[[str], Worker], program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """One small artifact of each format, made once in a session."""
    folder = tmp_path_factory.mktemp("artifacts")

    def get(form: str) -> Path:
        path = folder / f"net{FORMATS[form].suffix}"
        if not path.exists():
            request = {
                "name": "net",
                "program": str(program),
                "inputs": [s.to_json() for s in INPUTS],
                "outputs": [s.to_json() for s in OUTPUTS],
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
