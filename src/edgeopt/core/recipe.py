"""The recipe: which stages a model goes through, and what is made of it in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from edgeopt.core.errors import UsageError
from edgeopt.core.formats import FORMATS
from edgeopt.core.pruning import PruneOptions, SparsifyOptions
from edgeopt.core.quantization import QuantizationOptions
from edgeopt.core.settings import Settings, parse, read_mapping
from edgeopt.core.training import CutDepthOptions, DistillOptions, FinetuneOptions

Options = PruneOptions | SparsifyOptions | CutDepthOptions | FinetuneOptions | DistillOptions
TRAINING = ("finetune", "distill")


class QuantizeOptions(QuantizationOptions):
    """How the exported files are quantized; the last stage, since a quantized graph cannot be pruned or trained.

    Attributes:
        precision: that the files are made in.
        calibration_samples: of the training data.
    """

    precision: str = "static_wi8_ai8"
    calibration_samples: Annotated[int, Field(ge=1)] = 200


class Stage(Settings):
    """One stage: exactly one of these keys."""

    prune: PruneOptions | None = None
    sparsify: SparsifyOptions | None = None
    cut_depth: CutDepthOptions | None = None
    finetune: FinetuneOptions | None = None
    distill: DistillOptions | None = None
    quantize: QuantizeOptions | None = None

    @model_validator(mode="after")
    def _one(self) -> Stage:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"a stage has exactly one key of {known}; found {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Its one key."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def options(self) -> Options | QuantizeOptions:
        """What stands under its key."""
        found: Options | QuantizeOptions = getattr(self, self.kind)
        return found


class RecipeData(Settings):
    """Data sources: a built-in name, or a path relative to the recipe; what is not given comes from the model's card.

    Attributes:
        train: what training, pruning and calibration see; the card's calibration data.
        eval: what every stage is judged on; the card's evaluation data.
        slices: columns of the evaluation table whose values accuracy is told for, before and after; the card's, else
            all further columns of at most 20 values.
    """

    train: str | None = None
    eval: str | None = None
    slices: tuple[str, ...] = ()


class ExportOptions(Settings):
    """What files are made in the end.

    Attributes:
        formats: all that the target takes, or all four.
        target: a device profile.
        precisions: to make beside that of the quantize stage; the target's or fp32 where there is no such stage.
        samples: evaluation samples that every file is executed on.
        compare_speed: time integer files against float ones.
        nms: put a detector's non-maximum suppression into the files whose format can hold it.
    """

    formats: tuple[str, ...] = ()
    target: str | None = None
    precisions: tuple[str, ...] = ()
    samples: Annotated[int, Field(ge=1)] = 500
    compare_speed: bool = True
    nms: bool = False


class Recipe(Settings):
    """What `edgeopt run` does.

    Attributes:
        model: as `edgeopt convert` takes it; a path is relative to the recipe.
        arch: builds the module for a file of weights.
        data: to train and evaluate on.
        seed: of everything random.
        stages: performed in this order.
        export: files to make of the result.
    """

    model: str
    arch: str | None = None
    data: RecipeData = RecipeData()
    seed: Annotated[int, Field(ge=0)] = 0
    stages: tuple[Stage, ...] = ()
    export: ExportOptions = ExportOptions()

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        sparse = ""
        for number, stage in enumerate(self.stages):
            place = f"stage {number} ({stage.kind})"
            if stage.kind == "quantize" and number != len(self.stages) - 1:
                after = self.stages[number + 1].kind
                raise ValueError(
                    f"{place} comes before {after}: a quantized graph holds integers and fixed ranges, which {after} "
                    "would make wrong; put quantize last"
                )
            options = stage.options
            if isinstance(options, DistillOptions) and options.teacher is None and number == 0:
                raise ValueError(
                    f"{place} comes first: the teacher is the model itself; put a stage that changes it before, "
                    "or name a teacher"
                )
            if stage.kind in ("prune", "cut_depth") and sparse:
                raise ValueError(f"{place} comes after {sparse}: what it removes would undo the share of zeros")
            training = options if isinstance(options, (FinetuneOptions, DistillOptions)) else None
            if sparse and training is not None and not training.keep_zeros:
                raise ValueError(f"{place} comes after {sparse} and would fill the zeros: set keep_zeros: true")
            if stage.kind == "sparsify":
                sparse = "sparsify"
            elif training is not None and training.sparsity is not None:
                sparse = f"{stage.kind} with sparsity"
        return self

    @property
    def quantize(self) -> QuantizeOptions | None:
        """The options of the quantize stage, where there is one."""
        last = self.stages[-1].options if self.stages else None
        return last if isinstance(last, QuantizeOptions) else None


def read_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and change it as `--set` says.

    Args:
        path: of the YAML file.
        changes: each `stages.0.prune.macs=0.5`: names and list indices, and a YAML value.

    Raises:
        UsageError: missing, malformed, an unknown key, or an order of stages that makes no sense.
    """
    document = read_mapping(path)
    for change in changes:
        _set(document, change)
    recipe = parse(Recipe, document, str(path))
    for name in recipe.export.formats:
        if name not in FORMATS:
            raise UsageError(f"{path}: export.formats: no format {name!r}; known: {', '.join(FORMATS)}")
    return recipe


def _set(document: Any, change: str) -> None:
    place, equals, text = change.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {change!r}: expected a place and a value, as stages.0.prune.macs=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {change!r}: {text!r} is no value") from error
    current = document
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(current, list):
            if not key.isdigit() or int(key) >= len(current):
                raise UsageError(
                    f"--set {change!r}: {'.'.join(keys[:position])} has {len(current)} entries, no {key!r}"
                )
            index: Any = int(key)
        elif isinstance(current, dict):
            index = key
            if not last and current.get(key) is None:
                current[key] = {}
        else:
            raise UsageError(f"--set {change!r}: {'.'.join(keys[:position])} holds a value, not options")
        if last:
            current[index] = value
        else:
            current = current[index]
