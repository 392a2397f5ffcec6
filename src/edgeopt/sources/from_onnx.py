"""`.onnx` files, imported as a torch module so that every stage and exporter works on them."""

from __future__ import annotations

from pathlib import Path

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
    imported = import_onnx(path, _shapes(path, request))
    return Loaded(
        imported.module,
        imported.inputs,
        imported.output_names,
        notes=imported.notes,
        shaped=True,
        ranges=imported.ranges,
    )


def _shapes(path: Path, request: SourceRequest) -> dict[str, tuple[int, ...]] | None:
    if not request.shapes and not request.named_shapes:
        return None
    model = read_onnx(path)
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    loose = [i.name for i in inputs if any(d.dim_value <= 0 for d in i.type.tensor_type.shape.dim)]
    return request.shapes_by_name([i.name for i in inputs], loose)
