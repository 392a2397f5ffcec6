from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeopt.core.errors import SourceError
from edgeopt.worker import Limits, Worker

torch.set_num_threads(1)

ARCH = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def build():
    return Net()
"""


@pytest.fixture(scope="session")
def arch(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("arch") / "arch.py"
    path.write_text(ARCH)
    return path


@pytest.fixture(scope="session")
def net(arch) -> nn.Module:
    namespace: dict = {}
    exec(compile(arch.read_text(), str(arch), "exec"), namespace)
    torch.manual_seed(0)
    return namespace["build"]().eval()


@pytest.fixture(scope="session")
def files(net, tmp_path_factory) -> dict[str, Path]:
    """The same weights in every kind of file that edgeopt reads."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(net.state_dict(), folder / "net.pt")
    torch.save(
        {"epoch": 3, "model_state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "w.pth"
    )
    save_file(net.state_dict(), folder / "net.safetensors")
    example = (torch.rand(1, 1, 8, 8),)
    program = torch.export.export(net, example)
    torch.export.save(program, folder / "net.pt2")
    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(dynamic, folder / "dynamic.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecations
        torch.onnx.export(net, example, folder / "net.onnx", dynamo=True, verbose=False, input_names=["image"])
    return {p.name: p for p in folder.iterdir() if p.suffix != ".data"}


@pytest.fixture(scope="session")
def shared_worker():
    with Worker(threads=1, environment={"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, limits=Limits(timeout_s=60)) as worker:
        yield worker


@pytest.fixture(scope="session")
def trusting_worker():
    with Worker(threads=1, limits=Limits(timeout_s=60)) as worker:
        yield worker


@pytest.fixture
def load(shared_worker, trusting_worker, tmp_path):
    """Load a model as `edgeopt inspect` and `convert` do, in a worker."""

    def load(source, *, arch=None, shapes=(), trust=False):
        worker = trusting_worker if trust else shared_worker
        return worker.call(
            "edgeopt.tasks.inspect:inspect_source",
            {"source": str(source), "arch": arch and str(arch), "trust": trust, "shapes": [list(s) for s in shapes]},
            what=f"loading {Path(str(source)).name}",
            log=tmp_path / "model.log",
            failure=SourceError,
        )

    return load
