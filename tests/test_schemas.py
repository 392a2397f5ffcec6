"""The published schemas are those of the types."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("write_schemas", ROOT / "scripts" / "write_schemas.py")
assert _spec is not None and _spec.loader is not None
write_schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write_schemas)


@pytest.mark.parametrize("name", sorted(write_schemas.DOCUMENTS))
def test_schema_is_current(name: str) -> None:
    published = (ROOT / "schemas" / f"{name}.schema.json").read_text()
    assert published == write_schemas.schema_text(name), "run `make schemas`"
