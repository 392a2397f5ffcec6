"""`edgeopt eval`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from edgeopt.cli.options import make_source, print_json, source_options, splitting, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.context import Context
from edgeopt.report.evaluation_table import show_evaluation


@click.command("eval")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--data", metavar="FILE", help="Labelled table, image folder, .npz or built-in set; else the bundle's.")
@click.option("--against", metavar="MODEL", help="The original, or an artifact.  [default: the bundle's fp32 file]")
@click.option("--samples", type=click.IntRange(min=1), default=500, show_default=True, help="Inputs at most.")
@click.option("--only", multiple=True, callback=splitting, metavar="NAMES", help="Formats or precisions of a bundle.")
@click.option(
    "--card", type=click.Path(path_type=Path), metavar="CARD.yaml", help="Preprocessing, labels and task of a file."
)
@source_options
@work_options
@with_context
def command(
    *,
    artifact: Path,
    data: str | None,
    against: str | None,
    samples: int,
    only: tuple[str, ...],
    card: Path | None,
    arch: str | None,
    input_shape: tuple[str, ...],
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Answer labelled inputs with ARTIFACT, a file or a whole bundle, each in its own runtime, and score the answers.

    Results of a bundle are kept in its eval.json, where `gate` and `report` find them. A table's further columns are
    groups that are scored apart.

    \b
    edgeopt eval out/demo --data test.csv
    edgeopt eval model.tflite --against models/mnist-mobilenet/card.yaml --samples 1000
    """  # noqa: D301 - click wants the character itself
    from edgeopt.evaluation import Subject, evaluate, keep_evaluation

    subject = Subject.of(artifact, only)
    source = make_source(against, arch, input_shape, trust_source) if against else None
    document = evaluate(subject, context, data=data, against=source, samples=samples, card=card)
    kept = None
    if subject.bundle is not None and artifact.is_dir() and not only and artifact.suffix != ".mlpackage":
        kept = keep_evaluation(subject.bundle, document)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_evaluation(document, Console())
        if kept is not None:
            click.echo(f"kept in {kept}")
    return 1 if document["failures"] else 0
