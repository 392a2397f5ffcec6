"""The four formats and what each can do, as data: read before anything heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core.errors import UsageError, did_you_mean

PRECISIONS = (
    "fp32",
    "fp16",
    "static_wi8_ai8",
    "static_wi8_ai16",
    "dynamic_wi8_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
    "palettized_w6",
    "palettized_w4",
    "auto",
)


@dataclass(frozen=True)
class Format:
    """An artifact format.

    Attributes:
        name: what the user writes after `--to`.
        suffix: of the file (or folder, for Core ML).
        refuses: precisions that it cannot do, each with the reason.
        extra: the installation extra with its converter and runtime.
        packages: import names that must be importable to export.
        runtime: the plugin that executes it on this host.
        suppresses: whether non-maximum suppression can be part of an artifact.
        lowers_quantized_graph: whether static int8 starts from the one PT2E graph; else the format's own tool quantizes
            the same weights with the same ranges.
    """

    name: str
    suffix: str
    refuses: Mapping[str, str]
    extra: str
    packages: tuple[str, ...]
    runtime: str
    lowers_quantized_graph: bool
    suppresses: bool = False

    @property
    def runs_here(self) -> bool:
        """Whether its own runtime, rather than an evaluator of its operators, executes it on this host."""
        return self.name != "coreml" or sys.platform == "darwin"

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the exporter can produce."""
        return tuple(p for p in PRECISIONS if p not in self.refuses)


OLDEST_SYSTEM = {
    "static_wi8_ai8": "iOS17",
    "static_wi8_ai16": "iOS17",
    "auto": "iOS17",
    "weight_only_wi4_afp32": "iOS18",
}
"""Core ML's precisions that not every system reads, with the first that does."""
NO_PALETTES = "only Core ML has weights that are indices into a table"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "onnx",
            ".onnx",
            {"palettized_w6": NO_PALETTES, "palettized_w4": NO_PALETTES},
            "onnx",
            ("onnx", "onnxscript", "onnxruntime"),
            "ort",
            True,
            suppresses=True,
        ),
        Format(
            "litert",
            ".tflite",
            {"palettized_w6": NO_PALETTES, "palettized_w4": NO_PALETTES},
            "litert",
            ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
            "litert",
            False,
        ),
        Format(
            "coreml",
            ".mlpackage",
            {"static_wi8_ai16": "Core ML quantizes activations to 8 bits only"},
            "coreml",
            ("coremltools",),
            "coreml",
            True,
        ),
        Format(
            "executorch",
            ".pte",
            {
                "static_wi8_ai16": "XNNPACK quantizes activations to 8 bits only",
                "weight_only_wi4_afp32": "XNNPACK multiplies 4-bit weights with quantized activations only",
                "palettized_w6": NO_PALETTES,
                "palettized_w4": NO_PALETTES,
            },
            "executorch",
            ("executorch",),
            "executorch",
            True,
        ),
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


def require_precision(form: Format, precision: str, system: str = "iOS17") -> None:
    """Refuse a precision that does not exist, or that the format cannot do on the systems that must read it.

    Args:
        form: to export to.
        precision: asked for.
        system: the oldest that must run a Core ML package.

    Raises:
        UsageError: names what can be done instead.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}{did_you_mean(precision, PRECISIONS)}")
    if precision in form.refuses:
        raise UsageError(
            f"{form.name} cannot do {precision}: {form.refuses[precision]}; it can do {', '.join(form.precisions)}"
        )
    oldest = OLDEST_SYSTEM.get(precision, "")
    if form.name == "coreml" and system < oldest:
        raise UsageError(
            f"Core ML reads {precision} from {oldest} on, and {system} is to run it; give a --target whose"
            f" coreml_deployment_target is {oldest}"
        )
