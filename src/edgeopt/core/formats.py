"""The four formats and what each can do, as data: read before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeopt.core.errors import UsageError, did_you_mean

PRECISIONS = ("fp32", "fp16", "dynamic_wi8_afp32", "static_wi8_ai8")


@dataclass(frozen=True)
class Format:
    """An artifact format.

    Attributes:
        name: what the user writes after `--to`.
        suffix: of the file (or folder, for Core ML).
        precisions: what the exporter can produce.
        extra: the installation extra with its converter and runtime.
        packages: import names that must be importable to export.
        runtime: the plugin that executes it on this host.
        lowers_quantized_graph: whether static int8 starts from the one PT2E graph; else its own tool quantizes.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]
    extra: str
    packages: tuple[str, ...]
    runtime: str
    lowers_quantized_graph: bool


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("onnx", ".onnx", PRECISIONS, "onnx", ("onnx", "onnxscript", "onnxruntime"), "ort", True),
        Format(
            "litert",
            ".tflite",
            PRECISIONS,
            "litert",
            ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
            "litert",
            False,
        ),
        Format("coreml", ".mlpackage", PRECISIONS, "coreml", ("coremltools",), "coreml", True),
        Format("executorch", ".pte", PRECISIONS, "executorch", ("executorch",), "executorch", True),
    )
}


def format_named(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def format_of_file(path: Path) -> Format | None:
    """Return the format that an artifact's file name says, or None."""
    return next((f for f in FORMATS.values() if path.name.endswith(f.suffix)), None)


def require_precision(form: Format, precision: str) -> None:
    """Refuse a precision that does not exist or that the format cannot do.

    Raises:
        UsageError: names what can be done instead.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    if precision not in form.precisions:
        raise UsageError(f"{form.name} cannot do {precision}; it can do {', '.join(form.precisions)}")
