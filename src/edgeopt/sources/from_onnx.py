"""`.onnx` files, imported as a torch module so that every stage and exporter works on them."""

from __future__ import annotations

from pathlib import Path

from edgeopt.core.errors import UsageError
from edgeopt.onnx_import import import_onnx
from edgeopt.onnx_import.reader import read_onnx
from edgeopt.sources.request import Loaded, SourceRequest


def load(request: SourceRequest) -> Loaded:
    """Import the graph.

    Raises:
        UsageError: another number of shapes than of inputs.
        SourceError: the file is damaged.
        UnsafeFileError: external data outside its folder.
        UnsupportedOpError: an operator that the import does not know.
    """
    path = Path(request.location)
    imported = import_onnx(path, _named_shapes(path, request.shapes))
    return Loaded(imported.module, imported.inputs, imported.output_names)


def _named_shapes(path: Path, shapes: tuple[tuple[int, ...], ...]) -> dict[str, tuple[int, ...]] | None:
    if not shapes:
        return None
    model = read_onnx(path)
    constants = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in constants]
    if len(names) != len(shapes):
        raise UsageError(f"{path}: has {len(names)} inputs, --input-shape gives {len(shapes)}")
    return dict(zip(names, shapes, strict=True))
