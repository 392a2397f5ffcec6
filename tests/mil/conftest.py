"""Builds MIL programs and packages for the evaluator's tests."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    # Importing coremltools imports executorch, which calls what importlib.resources deprecates.
    warnings.simplefilter("ignore")
    import coremltools as ct
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.mil import types

    from edgeopt.mil import Evaluator, Program, load_package, program_of

mb = mil.Builder

Arrays = dict[str, np.ndarray]
Build = Callable[..., Any]

_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "int8": types.int8, "uint8": types.uint8,
          "bool": types.bool, "int16": types.int16, "uint16": types.uint16}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # coremltools keeps models in temporary folders and leaves removing them to the garbage collector.
    config.addinivalue_line("filterwarnings", "ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _program(build: Build, inputs: Arrays, opset: Any = ct.target.iOS17) -> Program:
    holders = {
        name: mb.placeholder(shape=array.shape, dtype=_TYPES[array.dtype.name]) for name, array in inputs.items()
    }
    with mil.Function(holders, opset_version=opset) as function:
        result = build(**function.inputs)
        function.set_outputs(list(result) if isinstance(result, tuple | list) else [result])
    program = mil.Program()
    program.add_function("main", function)
    return program_of(program)


@pytest.fixture(scope="session")
def make_program() -> Callable[..., Program]:
    """`make_program(build, inputs, opset=iOS17)`: a program whose inputs have the arrays' shapes and types."""
    return _program


@pytest.fixture(scope="session")
def run_mil() -> Callable[..., Any]:
    """`run_mil(build, inputs, opset, precision)`: outputs as a list, or the only one."""

    def run(build: Build, inputs: Arrays, opset: Any = ct.target.iOS17, precision: str = "fp32") -> Any:
        outputs = list(Evaluator(_program(build, inputs, opset), precision)(inputs).values())
        return outputs[0] if len(outputs) == 1 else outputs

    return run


@pytest.fixture(scope="session")
def convert() -> Callable[..., Path]:
    """`convert(module, examples, path, half=False, **options)`: a package through torch.export."""

    def to_package(
        module: Any, examples: tuple[torch.Tensor, ...], path: Path, half: bool = False, **options: Any
    ) -> Path:
        options = {"minimum_deployment_target": ct.target.iOS17, "skip_model_load": True, **options}
        precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter's and torch's, about each other
            if isinstance(module, torch.jit.ScriptModule):
                program: Any = module
            else:
                program = torch.export.export(module.eval(), examples).run_decompositions({})
            ct.convert(program, compute_precision=precision, **options).save(str(path))
        return path

    return to_package


@pytest.fixture(scope="session")
def trace() -> Callable[..., Any]:
    """`trace(module, examples)`: TorchScript, coremltools' only way to state and flexible shapes."""

    def to_script(module: Any, *examples: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates tracing
            return torch.jit.trace(module.eval(), examples)

    return to_script


class SmallNet(torch.nn.Module):
    """Convolution, pooling, a linear head: one of each that compressors touch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.body = torch.nn.Conv2d(32, 64, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(self.pool(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="session")
def small_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return SmallNet().eval()


@pytest.fixture(scope="session")
def small_input() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def small_package(small_net: torch.nn.Module, tmp_path_factory: Any, convert: Any, small_input: np.ndarray) -> Path:
    """SmallNet as an fp32 package."""
    path = tmp_path_factory.mktemp("small") / "small.mlpackage"
    return convert(small_net, (torch.from_numpy(small_input),), path)


@pytest.fixture(scope="session")
def small_program(small_package: Path) -> Program:
    return load_package(small_package)
