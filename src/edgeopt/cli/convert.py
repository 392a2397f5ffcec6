"""`edgeopt convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

from edgeopt.cli.options import is_sound, make_source, print_json, source_options, splitting, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.errors import UsageError
from edgeopt.core.formats import FORMATS, PRECISIONS
from edgeopt.core.quantization import QuantizationOptions
from edgeopt.core.settings import parse
from edgeopt.core.target import load_target
from edgeopt.lengths import convert_lengths, parse_lengths
from edgeopt.pipeline import convert, plan
from edgeopt.report.terminal import show_bundle

OWN_FLAGS = ("keep_float", "max_drop")


@click.command("convert")
@click.argument("model")
@click.option("--to", "formats", multiple=True, callback=splitting, metavar="FORMATS", help=f"Of {', '.join(FORMATS)}.")
@click.option("--target", metavar="NAME", help="A device profile: formats, precision, layout (see `edgeopt targets`).")
@click.option(
    "--precision", "precisions", multiple=True, callback=splitting, metavar="NAMES", help=f"Of {', '.join(PRECISIONS)}."
)
@click.option("--data", metavar="FILE", help="Table, image folder, .npz or built-in set to calibrate and verify on.")
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs to verify on.")
@click.option("--calibration-samples", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--min-snr", type=float, metavar="DB", help="Pass mark of the signal-to-noise ratio.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), help="Pass mark of top-1 agreement.")
@click.option("--keep-float", multiple=True, callback=splitting, metavar="LAYERS", help="Layers that stay in float.")
@click.option("--max-drop", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Of accuracy, for auto.")
@click.option(
    "--quantization",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Of {', '.join(n for n in QuantizationOptions.model_fields if n not in OWN_FLAGS)}.",
)
@click.option("--nms", is_flag=True, help="A detector's non-maximum suppression inside the file (ONNX), not behind it.")
@click.option(
    "--detection",
    "detection",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"Of {', '.join(DetectionOptions.model_fields)}; in place of the card's.",
)
@click.option(
    "--lengths",
    multiple=True,
    callback=splitting,
    metavar="TOKENS",
    help="Of texts: a bundle for each, such as 32,128.",
)
@click.option("--no-speed", is_flag=True, help="Do not time integer files against float ones.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: NAME-bundle]")
@source_options
@work_options
@with_context
def command(
    *,
    model: str,
    formats: tuple[str, ...],
    target: str | None,
    precisions: tuple[str, ...],
    data: str | None,
    samples: int,
    calibration_samples: int,
    min_snr: float | None,
    min_agreement: float | None,
    keep_float: tuple[str, ...],
    max_drop: float | None,
    settings: tuple[str, ...],
    nms: bool,
    detection: tuple[str, ...],
    lengths: tuple[str, ...],
    no_speed: bool,
    output: Path | None,
    arch: str | None,
    input_shape: tuple[str, ...],
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Export MODEL and run every file on real inputs before handing it over.

    MODEL is a card (*.yaml), file.py:factory, timm:NAME, .pt2, .onnx, or weights (.safetensors, .pt, .pth) with --arch.

    \b
    edgeopt convert models/mnist-mobilenet/card.yaml --precision fp32,static_wi8_ai8 -o out
    edgeopt convert timm:resnet18@weights.safetensors --target pixel-8 --data images/
    """  # noqa: D301 - click wants the character itself
    from edgeopt.sources.request import understand

    source = make_source(model, arch, input_shape, trust_source)
    what = plan(
        formats,
        precisions,
        load_target(target) if target else None,
        data=data,
        samples=samples,
        calibration_samples=calibration_samples,
        min_snr_db=min_snr,
        min_agreement=min_agreement,
        quantization=_quantization(settings, keep_float, max_drop),
        compares_speed=not no_speed,
        nms=nms,
        detection=_detection(detection),
    )
    request = understand(model, arch=arch, trust=trust_source, shapes=source.shapes)
    out = output or Path(f"{request.name}-bundle")
    if lengths:
        if request.kind != "transformers" or input_shape:
            raise UsageError("--lengths is for Hugging Face text models (hf:FOLDER), in place of --input-shape")
        bundles = convert_lengths(source, what, parse_lengths(lengths), out, context)
        display.close()
        return _show_lengths(bundles, out, as_json=as_json)
    document = convert(source, what, out, context)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_bundle(document, str(out), Console())
    return 0 if is_sound(document) else 1


def _show_lengths(bundles: dict[str, Any], out: Path, *, as_json: bool) -> int:
    if as_json:
        print_json(bundles)
    else:
        for entry in bundles["lengths"]:
            show_bundle(entry["manifest"], str(out / entry["bundle"]), Console())
    return 0 if all(is_sound(entry["manifest"]) for entry in bundles["lengths"]) else 1


def _quantization(
    settings: tuple[str, ...], keep_float: tuple[str, ...], max_drop: float | None
) -> QuantizationOptions:
    document = _values("--quantization", settings)
    if keep_float:
        document["keep_float"] = keep_float
    if max_drop is not None:
        document["max_drop"] = max_drop
    return parse(QuantizationOptions, document, "--quantization")


def _detection(settings: tuple[str, ...]) -> dict[str, Any]:
    document = _values("--detection", settings)
    return parse(DetectionOptions, document, "--detection").model_dump(mode="json", exclude_unset=True)


def _values(option: str, settings: tuple[str, ...]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{option} {text!r}: expected NAME=VALUE")
        try:
            document[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"{option} {text!r}: {value!r} is no value") from error
    return document
