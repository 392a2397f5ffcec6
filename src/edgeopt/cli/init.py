"""`edgeopt init`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgeopt.cli.options import print_json
from edgeopt.core.errors import OutputError
from edgeopt.core.recipe import read_recipe

RECIPE = """\
# What `edgeopt run {file}` does. Everything but `model` may be left out.
model: {model}{arch}

# Samples to train on and to judge by: an image folder, a .csv, .tsv, .jsonl or .npz file, or a built-in set.
data:
  train: {train}
  eval: {eval}

seed: 0

stages:
{stages}
  # Last, since a quantized graph can neither be pruned nor trained.
  - quantize:
      precision: static_wi8_ai8    # or dynamic_wi8_afp32, weight_only_wi8_afp32, auto, ...
      calibration_samples: 200     # of the training data

export:
  formats: [onnx, litert, coreml, executorch]
  # target: pixel-8                # a device profile, see `edgeopt targets`
  precisions: []                   # to make beside that of the quantize stage, such as fp32
  samples: 500                     # evaluation samples that every file is executed on
"""
CONVOLUTIONS = """\
  # Remove whole channels until a budget is met: a share of the model's multiply-accumulates.
  - prune:
      macs: 0.5                    # or params, size; or ratio: a share of the channels
      importance: taylor           # or magnitude, activation
      round_to: 8                  # channel counts that kernels like

  # Train what is left on the answers of the model as it came.
  - distill:
      epochs: 10
      learning_rate: 0.002
      schedule: one-cycle
      temperature: 4.0
      label_share: 0.3             # of the loss that comes from labels
"""
TRANSFORMER = """\
  # Half the feed-forward width and attention heads; or cut_depth: {blocks: 3} for fewer layers.
  - prune:
      macs: 0.6
      importance: taylor
      round_to: 8

  # Train what is left on the answers of the model as it came, and on how its attention relates tokens.
  - distill:
      epochs: 3
      learning_rate: 0.0001
      batch_size: 32
      temperature: 2.0
      label_share: 0.3
      relation_weight: 1.0
"""
TEXT = ("text-classification", "token-classification", "sentence-embedding", "question-answering")


@click.command("init")
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("recipe.yaml"), show_default=True)
@click.option("--arch", metavar="FILE.py:FACTORY", help="Builds the module for a file of weights.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def command(*, model: str, output: Path, arch: str | None, force: bool, as_json: bool) -> None:
    """Write a commented recipe for MODEL; edit it, then `edgeopt run` it."""
    from edgeopt.sources.request import understand

    request = understand(model, arch=arch)
    if output.exists() and not force:
        raise OutputError(f"{output}: is there already; --force replaces it, -o names another")
    folder = output.resolve().parent
    data = request.card.data
    text = RECIPE.format(
        file=output.name,
        model=_from(model, folder),
        arch=f"\narch: {_from(arch, folder)}" if arch else "",
        train=_data(data.calibration, request.folder, folder),
        eval=_data(data.eval, request.folder, folder),
        stages=(TRANSFORMER if request.card.task in TEXT else CONVOLUTIONS),
    )
    unfinished = output.with_name(f".{output.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        read_recipe(unfinished)
        unfinished.replace(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    if as_json:
        print_json({"recipe": str(output)})
    else:
        click.echo(f"{output}: edit it, then `edgeopt run {output} -o out`")


def _from(name: str, folder: Path) -> str:
    """Return a model's name as a recipe in `folder` spells it."""
    file, colon, factory = name.rpartition(":")
    path = Path(file if colon and file.endswith(".py") else name)
    if not path.exists():
        return name
    spelled = os.path.relpath(path.resolve(), folder)
    return f"{spelled}:{factory}" if colon and file.endswith(".py") else spelled


def _data(name: str | None, base: Path, folder: Path) -> str:
    if name is None:
        return "null    # to be filled in"
    path = base / name
    return os.path.relpath(path.resolve(), folder) if path.exists() else name
