"""edgeopt: verified ONNX, LiteRT, Core ML and ExecuTorch files from a trained model.

Names are imported when they are first used, so that `import edgeopt` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.compression import RecipeRun
    from edgeopt.context import Context
    from edgeopt.core.errors import EdgeoptError
    from edgeopt.core.recipe import Recipe, read_recipe
    from edgeopt.core.target import Target, load_target
    from edgeopt.pipeline import convert, inspect, plan, run, verify
    from edgeopt.steps import Plan, Source

__all__ = [
    "Context",
    "EdgeoptError",
    "Plan",
    "Recipe",
    "RecipeRun",
    "Source",
    "Target",
    "convert",
    "inspect",
    "load_target",
    "plan",
    "read_recipe",
    "run",
    "verify",
]

_HOMES = {
    "Context": "context",
    "EdgeoptError": "core.errors",
    "Plan": "steps",
    "Recipe": "core.recipe",
    "RecipeRun": "compression",
    "Source": "steps",
    "Target": "core.target",
    "convert": "pipeline",
    "inspect": "pipeline",
    "load_target": "core.target",
    "plan": "pipeline",
    "read_recipe": "core.recipe",
    "run": "pipeline",
    "verify": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("edgeopt")
    if name in _HOMES:
        return getattr(import_module(f"edgeopt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
