"""`.keras` and `.h5` files and SavedModel folders: through ONNX to a torch module, inputs in the layout they have.

TensorFlow runs in a worker of its own: it takes long to import, aborts on some damaged files, and need not share a
process with PyTorch.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeopt.core.errors import EdgeoptError, MissingBackendError, SourceError, WorkerError
from edgeopt.core.model import DTYPES, TensorSpec
from edgeopt.onnx_import import import_onnx
from edgeopt.sources.request import Loaded, SourceRequest
from edgeopt.worker import Limits, Worker, report

TIMEOUT_S = 900.0
CHECK_TIMEOUT_S = 120.0
BASE_MEMORY_BYTES = 6 * 2**30
MEMORY_PER_FILE_BYTE = 24
PACKAGES = {"h5py": "h5py", "keras": "keras", "tensorflow": "tensorflow", "tf2onnx": "tf2onnx"}


def load(request: SourceRequest) -> Loaded:
    """Convert the model and import it.

    Raises:
        MissingBackendError: TensorFlow, Keras or tf2onnx is not installed.
        UsageError: a shape that is missing or does not fit.
        SourceError: it is damaged, of another kind than its name says, or cannot be converted; TensorFlow crashed.
        UnsafeFileError: loading it would run code, without `trust`.
        UnsupportedOpError: an operator that the import does not know.
    """
    for package, name in PACKAGES.items():
        if find_spec(package) is None:
            raise MissingBackendError(name, "tf")
    path = Path(request.location)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "model.onnx")
        arguments = {
            "shapes": [list(s) for s in request.shapes],
            "named_shapes": {name: list(s) for name, s in request.named_shapes.items()},
            "trust": request.trust,
            "out": str(out),
        }
        record = in_worker(path, arguments, Path(scratch))
        report("importing")
        imported = import_onnx(out)
    specs = []
    for told, spec in zip(record["inputs"], imported.inputs, strict=True):
        if told["dtype"] not in DTYPES:
            raise SourceError(f"{path}: input {told['name']!r} is of type {told['dtype']}; a model takes numbers")
        specs.append(replace(spec, name=told["name"], layout=told["layout"]))
    outputs = tuple(record["outputs"]) or imported.output_names
    return Loaded(imported.module, _unique(specs), outputs, notes=imported.notes, shaped=True)


def in_worker(path: Path, arguments: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Check a file or folder and run `keras_to_onnx.convert` on it, in a process of its own.

    Raises:
        SourceError: also where the process dies or exceeds its limits.
    """
    size = sum(f.lstat().st_size for f in (path.rglob("*") if path.is_dir() else (path,)) if f.is_file())
    memory = BASE_MEMORY_BYTES + MEMORY_PER_FILE_BYTE * size
    environment = {
        "CUDA_VISIBLE_DEVICES": "",
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": str(scratch / "keras"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }
    log = scratch / "tensorflow.log"
    what = f"TensorFlow reading {path}"
    try:
        kind = "saved_model"
        if not path.is_dir():
            with Worker(environment=environment, limits=Limits(CHECK_TIMEOUT_S, memory)) as worker:
                kind = worker.call(
                    "edgeopt.sources.keras_files:check",
                    {"path": str(path), "trust": arguments["trust"]},
                    what=what, log=log, failure=SourceError,
                )  # fmt: skip
        report("converting by TensorFlow")
        with Worker(environment=environment, limits=Limits(TIMEOUT_S, memory)) as worker:
            record: dict[str, Any] = worker.call(
                "edgeopt.sources.keras_to_onnx:convert",
                {"path": str(path), "kind": kind, **arguments},
                what=what, log=log, failure=SourceError,
            )  # fmt: skip
    except WorkerError as error:
        raise SourceError(
            f"{path}: {str(error.args[0]).removeprefix(f'{what}: ')}; the file is damaged or too large"
        ) from error
    except EdgeoptError as error:
        error.log = None  # the worker's log ends with the scratch folder; its words go to the log of this process
        raise
    finally:
        if log.exists():
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
    return record


def _unique(specs: list[TensorSpec]) -> tuple[TensorSpec, ...]:
    taken: set[str] = set()
    unique = []
    for spec in specs:
        name = spec.name
        while name in taken:
            name += "_"
        taken.add(name)
        unique.append(replace(spec, name=name))
    return tuple(unique)
