"""`.onnx` files, imported as a torch module so that every stage and exporter works on them."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import import import_onnx
from edgeopt.sources.request import Loaded, SourceRequest


def load(request: SourceRequest) -> Loaded:
    """Import the graph.

    Raises:
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
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise SourceError(f"{path}: not an ONNX file, or a damaged one") from error
    constants = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in constants]
    return dict(zip(names, shapes, strict=False))
