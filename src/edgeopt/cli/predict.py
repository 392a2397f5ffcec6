"""`edgeopt predict`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from edgeopt.cli.options import print_json, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.pipeline import predict
from edgeopt.report.terminal import show_predictions


@click.command("predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="ARTIFACT", help="Another one, drawn side by side.")
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="CARD.yaml",
    help="Task, preprocessing and labels.  [default: the bundle's]",
)
@click.option("--confidence", type=click.FloatRange(0, 1), help="Lowest score of a box.  [default: the card's, .25]")
@click.option("--frames", type=click.IntRange(min=1), default=300, show_default=True, help="Of a video, at most.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("predictions"), show_default=True)
@work_options
@with_context
def command(
    *,
    artifact: Path,
    images: Path,
    against: Path | None,
    card: Path | None,
    confidence: float | None,
    frames: int,
    output: Path,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Run ARTIFACT on IMAGES (an image, a folder of them, or a video) and draw boxes or the five best classes."""
    artifacts = (artifact, against) if against is not None else (artifact,)
    document = predict(artifacts, images, output, context, card=card, confidence=confidence, frames=frames)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_predictions(document, str(output), Console())
    return 0
