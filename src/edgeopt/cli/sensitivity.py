"""`edgeopt sensitivity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgeopt import steps
from edgeopt.cli.options import make_source, print_json, source_options, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.core.errors import ConversionError, OutputError, UsageError
from edgeopt.core.formats import PRECISIONS
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.report.sensitivity_plot import sensitivity_svg
from edgeopt.report.sensitivity_table import show_sensitivity
from edgeopt.steps import Document, Plan, Source, workshop

MEASURED = ("static", "dynamic", "weight_only")
CHOICES = tuple(p for p in PRECISIONS if scheme_of(p).kind in MEASURED)


@click.command("sensitivity")
@click.argument("model")
@click.option("--data", metavar="FILE", help="Table, image folder, .npz or built-in set to measure on.")
@click.option(
    "--precision", type=click.Choice(CHOICES), default="static_wi8_ai8", show_default=True, help="To quantize to."
)
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs to measure on.")
@click.option(
    "--held-out", type=click.IntRange(min=1), default=32, show_default=True, help="Further inputs to report on."
)
@click.option("--keep-float", multiple=True, metavar="LAYER", help="A layer that stays in float anyway; repeatable.")
@click.option("--max-drop", type=click.FloatRange(0, 1), metavar="SHARE", help="Find the layers to keep in float.")
@click.option("--min-snr", type=float, metavar="DB", help="The same, where the model has no classes.  [default: 20]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .svg file, or a folder for .svg and .json.")
@source_options
@work_options
@with_context
def command(
    *,
    model: str,
    data: str | None,
    precision: str,
    samples: int,
    held_out: int,
    keep_float: tuple[str, ...],
    max_drop: float | None,
    min_snr: float | None,
    output: Path | None,
    arch: str | None,
    input_shape: tuple[str, ...],
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Show what quantizing each layer of MODEL costs, and with --max-drop which layers should stay in float.

    \b
    edgeopt sensitivity models/mnist-mobilenet/card.yaml -o sensitivity.svg
    edgeopt sensitivity model.onnx --data images/ --max-drop 0.01 --json
    """  # noqa: D301 - click wants the character itself
    source = make_source(model, arch, input_shape, trust_source)
    what = Plan(
        (),
        (precision,),
        data=data,
        samples=held_out,
        calibration_samples=samples,
        quantization=QuantizationOptions(keep_float=keep_float),
    )
    tolerance: dict[str, float] | None = None
    if max_drop is not None or min_snr is not None or precision == "auto":
        drop = QuantizationOptions().max_drop if max_drop is None else max_drop
        tolerance = {"max_drop": drop, "min_agreement": 1 - drop}
        tolerance |= {} if min_snr is None else {"min_snr_db": min_snr}
    if output is not None and output.is_file() and output.suffix != ".svg":
        raise UsageError(f"{output}: is a file; give a .svg file or a folder")
    document = sensitivity(source, what, context, tolerance)
    display.close()
    if output is not None:
        _write(document, output)
    if as_json:
        print_json(document)
    else:
        show_sensitivity(document, Console())
    choice = document["choice"]
    return 0 if choice is None or choice["reached"] else 1


def sensitivity(source: Source, what: Plan, context: Context, tolerance: dict[str, float] | None = None) -> Document:
    """Measure what quantizing each unit of a model costs; with a tolerance, find the units to keep in float.

    Raises:
        UsageError: static quantization without data to measure on.
        ConversionError: nothing can be quantized.
        EdgeoptError: the model or its data cannot be used.
    """
    with workshop(context) as work:
        with work.worker_for(source) as worker:
            prepared = steps.prepare(work, worker, source, what)
        calibrated = bool(prepared["data"]["calibrated"])
        precision = what.precisions[0]
        arguments = {
            "program": str(work.folder / "program.pt2"),
            "inputs": prepared["model"]["inputs"],
            "samples": str(work.folder / ("calibration" if calibrated else "inputs")),
            "held_out": str(work.folder / "inputs") if calibrated else None,
            "precision": precision,
            "options": what.quantization.model_dump(mode="json"),
            "task": prepared["model"]["task"],
            "tolerance": tolerance,
            "threads": context.jobs,
        }
        told = f"measuring {prepared['model']['name']}"
        # Threads that wait for each other by spinning take the processor from those they wait for.
        with work.worker(threads=context.jobs, environment={"OMP_WAIT_POLICY": "passive"}) as worker:
            found: Document = work.call(
                worker, "sensitivity", "sensitivity:sensitivity", arguments, what=told, failure=ConversionError
            )
        context.progress.finish("sensitivity", f"{len(found['sensitivity']['units'])} units", ok=True)
    choice = found["choice"]
    return {
        "model": prepared["model"]["name"],
        "source": prepared["model"]["source"],
        "precision": precision,
        "data": prepared["data"],
        "keep_float": [] if choice is None else list(choice["keep_float"]),
        "sensitivity": found["sensitivity"],
        "choice": choice,
    }


def _write(document: dict[str, Any], output: Path) -> None:
    """Write the plot, and into a folder the figures too; each file appears whole."""
    files = {output: sensitivity_svg(document)}
    if output.suffix != ".svg":
        text = json.dumps(document, indent=2) + "\n"
        files = {output / "sensitivity.svg": sensitivity_svg(document), output / "sensitivity.json": text}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from error
