"""`edgeopt run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgeopt.cli.options import is_sound, print_json, with_context, work_options
from edgeopt.cli.progress import Display
from edgeopt.compression import RecipeRun
from edgeopt.context import Context
from edgeopt.core.errors import UsageError
from edgeopt.core.recipe import Recipe, read_recipe
from edgeopt.core.target import load_target
from edgeopt.core.training import Nodes
from edgeopt.pipeline import recipe_plan, run
from edgeopt.report.stages import show_plan, show_stages
from edgeopt.report.terminal import show_bundle
from edgeopt.steps import Plan
from edgeopt.tracking import Tracker


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: NAME-bundle]")
@click.option("--set", "changes", multiple=True, metavar="PLACE=VALUE", help="Change the recipe, before it is checked.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "mps"]), default="cpu", show_default=True, help="That trains."
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="That train together, each on its share of every batch.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Machines that train together; each is given the same command.",
)
@click.option("--node-rank", type=click.IntRange(min=0), default=0, help="Number of this machine, from 0.")
@click.option("--rendezvous", metavar="HOST:PORT", help="Where machine 0 waits for the others.")
@click.option("--force", is_flag=True, help="Do every stage anew, whatever the cache holds.")
@click.option(
    "--track",
    "tracker",
    type=click.Choice(["mlflow"]),
    help="Log the run there too, and register the model.  [store: MLFLOW_TRACKING_URI]",
)
@click.option("--trust-source", is_flag=True, help="Allow code that comes with the model's file to run.")
@work_options
@with_context
def command(
    *,
    recipe: Path,
    output: Path | None,
    changes: tuple[str, ...],
    dry_run: bool,
    device: str,
    devices: int,
    nodes: int,
    node_rank: int,
    rendezvous: str | None,
    force: bool,
    tracker: Tracker | None,
    trust_source: bool,
    as_json: bool,
    context: Context,
    display: Display,
) -> int:
    """Perform RECIPE (recipe.yaml) and write a bundle of verified files.

    A run that was stopped goes on where it was when the same command is given again: finished stages come from the
    cache, and a stage that trains goes on from its last checkpoint.

    \b
    edgeopt run models/mnist-mobilenet/recipe.yaml -o out
    edgeopt run recipe.yaml -o out --set stages.0.prune.macs=0.4 --dry-run
    """  # noqa: D301 - click wants the character itself
    read = read_recipe(recipe, changes)
    what = recipe_plan(read, load_target(read.export.target) if read.export.target else None)
    machines = _nodes(nodes, node_rank, rendezvous)
    job = RecipeRun(read, recipe.resolve().parent, trust_source, device, force, devices, machines)
    if dry_run:
        document = _planned(read, what)
        display.close()
        if as_json:
            print_json(document)
        else:
            show_plan(document, Console())
        return 0
    out = output or Path(f"{recipe.resolve().parent.name}-bundle")
    document = run(job, out, context, tracker)
    display.close()
    if as_json:
        print_json(document)
    else:
        show_stages(document, Console())
        show_bundle(document, str(out), Console())
    return 0 if is_sound(document) else 1


def _nodes(count: int, rank: int, rendezvous: str | None) -> Nodes:
    if count == 1 and (rank or rendezvous is not None):
        raise UsageError("--node-rank and --rendezvous are for several machines: give --nodes too")
    if rank >= count:
        raise UsageError(f"--node-rank {rank}: {count} machines have the numbers 0 to {count - 1}")
    if count > 1:
        host, _, port = (rendezvous or "").rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 65536):
            raise UsageError(f"--nodes {count} needs --rendezvous HOST:PORT, where machine 0 can be reached")
    return Nodes(count, rank, rendezvous)


def _planned(recipe: Recipe, what: Plan) -> dict[str, Any]:
    return {
        "model": recipe.model,
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "stages": [{s.kind: s.options.model_dump(mode="json")} for s in recipe.stages],
        "formats": [form.name for form in what.formats],
        "precisions": list(what.precisions),
        "target": what.target.name if what.target else None,
    }
