"""The recipes of the reference models are sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt.core.recipe import read_recipe
from edgeopt.core.training import TrainingSettings
from edgeopt.pipeline import recipe_plan

RECIPES = sorted((Path(__file__).parents[2] / "models").glob("*/recipe.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.parent.name)
def test_a_reference_recipe_is_sound(path):
    recipe = read_recipe(path)
    assert (path.parent / recipe.model).exists() and recipe.stages
    what = recipe_plan(recipe, None)
    assert what.precisions and what.formats


def test_steps_of_epochs():
    assert TrainingSettings(epochs=2, batch_size=10).total_steps(100) == 20
    assert TrainingSettings(epochs=0.5, batch_size=10).total_steps(100) == 5
    assert TrainingSettings(steps=7).total_steps(100) == 7
    assert TrainingSettings(epochs=3, batch_size=64).total_steps(10) == 3
