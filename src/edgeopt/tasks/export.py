"""Exports one artifact."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from edgeopt import plugins
from edgeopt.core.artifact import ExportRequest


def export(format_name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run one exporter; returns `Export.to_json()` with the versions of the tools used."""
    exporter = plugins.find("exporters", format_name)
    made = exporter.export(ExportRequest.model_validate(request))
    record: dict[str, Any] = made.to_json()
    record["tools"] = {package: importlib.metadata.version(package) for package in exporter.TOOLS}
    return record


def warm(format_name: str) -> None:
    """Import the exporter, so that the first export finds it loaded."""
    plugins.find("exporters", format_name)
