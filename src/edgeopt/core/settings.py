"""What every file that a user writes has in common: strict keys, frozen values, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edgeopt.core.errors import UsageError, did_you_mean


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
        UsageError: the file is missing, or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
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
