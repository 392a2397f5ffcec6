"""What every file that a user writes has in common: strict keys, frozen values, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edgeopt.core.errors import UsageError, did_you_mean

MAX_BYTES = 16 * 2**20
MAX_ENTRIES = 1_000_000


class Settings(BaseModel):
    """Base of model cards, targets and every other document that a user writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def parse(kind: type[S], document: Any, where: str) -> S:
    """Build `kind` from parsed YAML or JSON.

    Raises:
        UsageError: the first thing wrong, with its place and the nearest known key.
    """
    if not isinstance(document, dict):
        raise UsageError(f"{where}: expected a mapping of options, found {type(document).__name__}")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(kind, first["loc"][:-1])
            raise UsageError(
                f"{where}: unknown option {place!r}{did_you_mean(str(first['loc'][-1]), known)}"
            ) from error
        told = [where, place, first["msg"].removeprefix("Value error, ")]
        raise UsageError(": ".join(part for part in told if part)) from error


def read_yaml(kind: type[S], path: Path) -> S:
    """Read one YAML document from `path` into `kind`.

    Raises:
        UsageError: the file is missing, is no YAML, or does not fit.
    """
    return parse(kind, load_yaml(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read one YAML document that is a mapping.

    Raises:
        UsageError: the file is missing, is no YAML, or something else than a mapping.
    """
    document = load_yaml(path)
    if not isinstance(document, dict):
        raise UsageError(f"{path}: expected a mapping of options, found {type(document).__name__}")
    return document


def load_yaml(path: Path) -> Any:
    """Read one YAML document, whatever it holds.

    Raises:
        UsageError: the file is missing, no file, too large, no YAML, or its aliases expand to more than anyone writes.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: cannot be read: it is {'a folder' if path.is_dir() else 'no regular file'}")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; nobody writes such a document")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        refuse_expansion(document, str(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(
            f"{place}: not valid YAML: {getattr(error, 'problem', None) or type(error).__name__}"
        ) from error
    except ValueError as error:  # a date that is none, or a number of too many digits
        raise UsageError(f"{path}: not valid YAML: {str(error)[:200]}") from error
    return document


def refuse_expansion(document: Any, where: str) -> None:
    """Refuse YAML whose aliases name aliases: some lines expand to 10⁹ values, which nothing gets through.

    Raises:
        UsageError: more than `MAX_ENTRIES` values, or one that holds itself.
    """
    if _entries(document, {}) >= MAX_ENTRIES:
        raise UsageError(f"{where}: its aliases expand to more than {MAX_ENTRIES:,} values, or one holds itself")


def _entries(value: Any, known: dict[int, int]) -> int:
    """Return how many values `value` holds, what an alias names being counted wherever it stands."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_ENTRIES  # what is met again before it is counted holds itself
        inner = (v for pair in value.items() for v in pair) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_entries(v, known) for v in inner)
    return known[id(value)]


def _fields_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    current: type[BaseModel] = kind
    for part in place:
        field = current.model_fields.get(str(part))
        nested = [a for a in _types_in(field.annotation if field else None) if issubclass(a, BaseModel)]
        if nested:
            current = nested[0]
    return list(current.model_fields)


def _types_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _types_in(part)]
