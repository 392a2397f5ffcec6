from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

torch.set_num_threads(1)


class SmallNet(nn.Module):
    """Plain, depthwise, pointwise and transposed convolution, a product of two activations, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pw = nn.Conv2d(8, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn(self.stem(x)))
        x = self.act(self.pw(self.dw(x)))
        x = torch.relu(self.up(x)).flatten(2)
        mixed = torch.matmul(x, x.transpose(1, 2))
        return self.fc(mixed).mean(1)


SMALL_NET_MACS = {
    "stem": 8 * 8 * 8 * 27,
    "dw": 8 * 8 * 8 * 9,
    "pw": 16 * 8 * 8 * 8,
    "up": 16 * 8 * 8 * 8 * 4,
    "matmul": 8 * 8 * 256,
    "fc": 8 * 8 * 10,
}
SMALL_NET_PARAMETERS = 216 + 16 + 80 + 144 + (16 * 8 * 4 + 8) + 90


@pytest.fixture(scope="session")
def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = SmallNet().eval()
    net.bn.running_mean.normal_(0, 0.1)
    net.bn.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(net.bn.bias)
    return net


@pytest.fixture(scope="session")
def small_input() -> torch.Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def small_macs() -> int:
    return sum(SMALL_NET_MACS.values())


@pytest.fixture(scope="session")
def small_parameters() -> int:
    return SMALL_NET_PARAMETERS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def _silently(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


@pytest.fixture(scope="session")
def onnx_file(small_net: nn.Module, small_input: torch.Tensor, folder: Path) -> Path:
    path = folder / "net.onnx"
    _silently(torch.onnx.export, small_net, (small_input,), path, dynamo=True, external_data=False, verbose=False)
    return path


@pytest.fixture(scope="session")
def litert_file(small_net: nn.Module, small_input: torch.Tensor, folder: Path) -> Path:
    path = folder / "net.tflite"

    def export() -> None:
        litert_torch = pytest.importorskip("litert_torch")
        litert_torch.convert(small_net, (small_input,)).export(str(path))

    _silently(export)
    return path


@pytest.fixture(scope="session")
def coreml_model(small_net: nn.Module, small_input: torch.Tensor):
    def export():
        ct = pytest.importorskip("coremltools")
        program = torch.export.export(small_net, (small_input,)).run_decompositions({})
        return ct.convert(program, minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32)

    return _silently(export)


@pytest.fixture(scope="session")
def coreml_package(coreml_model, folder: Path) -> Path:
    path = folder / "net.mlpackage"
    _silently(coreml_model.save, str(path))
    return path


@pytest.fixture(scope="session")
def quantized_coreml_package(coreml_model, folder: Path) -> Path:
    path = folder / "net_int8.mlpackage"

    def export() -> None:
        import coremltools.optimize.coreml as cto

        config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=16)
        cto.linear_quantize_weights(coreml_model, cto.OptimizationConfig(config)).save(str(path))

    _silently(export)
    return path


@pytest.fixture(scope="session")
def palettized_coreml_package(coreml_model, folder: Path) -> Path:
    path = folder / "net_4bit.mlpackage"

    def export() -> None:
        import coremltools.optimize.coreml as cto

        config = cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=16)
        cto.palettize_weights(coreml_model, cto.OptimizationConfig(config)).save(str(path))

    _silently(export)
    return path


def _executorch(net: nn.Module, x: torch.Tensor, delegated: bool) -> bytes:
    def export() -> bytes:
        pytest.importorskip("executorch")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        partitioner = [XnnpackPartitioner()] if delegated else []
        return (
            to_edge_transform_and_lower(torch.export.export(net, (x,)), partitioner=partitioner).to_executorch().buffer
        )

    return _silently(export)


@pytest.fixture(scope="session")
def executorch_file(small_net: nn.Module, small_input: torch.Tensor, folder: Path) -> Path:
    path = folder / "net.pte"
    path.write_bytes(_executorch(small_net, small_input, delegated=True))
    return path


@pytest.fixture(scope="session")
def portable_executorch_file(small_net: nn.Module, small_input: torch.Tensor, folder: Path) -> Path:
    path = folder / "portable.pte"
    path.write_bytes(_executorch(small_net, small_input, delegated=False))
    return path


@pytest.fixture(scope="session")
def inspectors():
    """Return the `inspect` of each format; importing coremltools warns about its surroundings."""

    def load():
        from edgeopt.inspection import inspect_coreml, inspect_executorch, inspect_litert, inspect_onnx

        return {
            "onnx": inspect_onnx.inspect,
            "litert": inspect_litert.inspect,
            "coreml": inspect_coreml.inspect,
            "executorch": inspect_executorch.inspect,
        }

    return _silently(load)
