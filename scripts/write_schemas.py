"""Write the JSON Schemas of the files that users write to `schemas/`."""

import json
from pathlib import Path

from edgeopt.core.budget import Budget
from edgeopt.core.card import ModelCard
from edgeopt.core.recipe import Recipe
from edgeopt.core.target import Target

FOLDER = Path(__file__).parents[1] / "schemas"
DOCUMENTS = {"budget": Budget, "card": ModelCard, "recipe": Recipe, "target": Target}


def schema_text(name: str) -> str:
    return json.dumps(DOCUMENTS[name].model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    for name in DOCUMENTS:
        (FOLDER / f"{name}.schema.json").write_text(schema_text(name))
