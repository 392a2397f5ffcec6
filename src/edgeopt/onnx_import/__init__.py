"""ONNX → PyTorch, with modules that the stages and exporters know."""

from edgeopt.onnx_import.coverage import Coverage, CoverageError
from edgeopt.onnx_import.importer import Imported, import_onnx

__all__ = ["Coverage", "CoverageError", "Imported", "import_onnx"]
