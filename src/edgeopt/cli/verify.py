"""`edgeopt verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from edgeopt.bundle.folder import MANIFEST
from edgeopt.cli.options import make_source, print_json, source_options, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.core.formats import PRECISIONS
from edgeopt.pipeline import plan, verify
from edgeopt.report.terminal import show_parity
from edgeopt.steps import artifact_format


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="MODEL", help="A model as `convert` takes it, or another artifact.")
@click.option("--data", metavar="FILE", help="Inputs; the card's own, else seeded noise.")
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="CARD.yaml",
    help="Preprocessing and task, where --against is an artifact.",
)
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="Sets the pass mark.  [default: the bundle's record, else fp32]"
)
@click.option(
    "--locate",
    "locate_below_db",
    type=float,
    metavar="DB",
    help="Core ML: also name the first operator whose result has a lower SNR.",
)
@click.option("--min-snr", type=float, metavar="DB", help="Pass mark of the signal-to-noise ratio.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), help="Pass mark of top-1 agreement.")
@source_options
@work_options
@with_context
def command(
    *,
    artifact: Path,
    against: str,
    data: str | None,
    card: Path | None,
    samples: int,
    precision: str | None,
    locate_below_db: float | None,
    min_snr: float | None,
    min_agreement: float | None,
    arch: str | None,
    input_shape: tuple[str, ...],
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Run ARTIFACT (.onnx, .tflite, .mlpackage, .pte), made by anyone, and compare its outputs."""
    form = artifact_format(artifact)
    what = plan(
        (form.name,),
        (precision or _recorded_precision(artifact),),
        None,
        data=data,
        samples=samples,
        calibration_samples=0,
        min_snr_db=min_snr,
        min_agreement=min_agreement,
    )
    source = make_source(against, arch, input_shape, trust_source)
    document = verify(artifact, source, what, context, card=card, locate_below_db=locate_below_db)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_parity(document, Console())
    return 0 if document["parity"]["passed"] else 1


def _recorded_precision(artifact: Path) -> str:
    try:
        entries = json.loads((artifact.parent / MANIFEST).read_bytes())["artifacts"]
        return next(str(e["precision"]) for e in entries if e["path"] == artifact.name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return "fp32"
