"""Reads the structure of a model or an artifact."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from edgeopt.plugins import missing_backend


def inspect_artifact(*, artifact: str, format_name: str) -> dict[str, Any]:
    """Return `Inspection.to_json()` of a file, without executing it."""
    try:
        module = import_module(f"edgeopt.inspection.inspect_{format_name}")
    except ModuleNotFoundError as error:
        raise missing_backend(error) from error
    record: dict[str, Any] = module.inspect(Path(artifact)).to_json()
    return record


def inspect_source(*, source: str, arch: str | None, trust: bool, shapes: list[list[int]]) -> dict[str, Any]:
    """Load a model and return `Inspection.to_json()` of its exported program."""
    from edgeopt.inspection.inspect_model import inspect_program
    from edgeopt.sources.request import understand
    from edgeopt.tasks.prepare import export_program, load

    request = understand(source, arch=arch, trust=trust, shapes=tuple(tuple(s) for s in shapes))
    model = load(request)
    program, outputs = export_program(model)
    record: dict[str, Any] = inspect_program(program).to_json()
    return record | {
        "source": source,
        "sha256": model.sha256,
        "inputs": [s.to_json() for s in model.inputs],
        "outputs": [s.to_json() for s in outputs],
    }
