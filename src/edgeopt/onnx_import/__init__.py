"""ONNX → PyTorch, with modules that the stages and exporters know.

Its names are loaded when they are asked for: reading an ONNX file's structure needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.onnx_import.coverage import Coverage, CoverageError
    from edgeopt.onnx_import.importer import Imported, import_onnx

__all__ = ["Coverage", "CoverageError", "Imported", "import_onnx"]

_HOMES = {"Coverage": "coverage", "CoverageError": "coverage", "Imported": "importer", "import_onnx": "importer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
