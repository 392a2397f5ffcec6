"""Reads `cases.yaml`: what there is to convert, and why some of it cannot be here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ROOT / "build" / "conformance"
"""Where packages lie that bring models and are not to be imported."""


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: unique.
        family: of the source.
        source: what `edgeopt convert` is given.
        shape: for `--input-shape`, or several for several inputs; None where the source tells.
        arch: for `--arch`.
        data: for `--data`, where noise is nothing that the model was made for.
        absent: why the case cannot run here.
    """

    name: str
    family: str
    source: str
    shape: str | list[str] | None = None
    absent: str | None = None
    arch: str | None = None
    data: str | None = None


def read_cases(scratch: Path) -> list[Case]:
    """Return all cases; folders of configurations are written to `scratch`."""
    document = yaml.safe_load((HERE / "cases.yaml").read_text(encoding="utf-8"))
    cases = [case for group in document["groups"] for case in _group(group, scratch)]
    names = [c.name for c in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return cases


def _group(group: dict[str, Any], scratch: Path) -> Iterator[Case]:
    family, shape = group["family"], group.get("shape")
    for name in group.get("names", ()):
        absent = _without(group.get("package"))
        source = group["source"].format(name=name)
        if family in ("keras", "card"):
            source = str((ROOT / source).resolve())
            absent = absent or (None if Path(source).exists() else f"{source} is not here")
        yield Case(name, family, source, shape, absent)
    for name, config in group.get("configs", {}).items():
        folder = scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**group["common"], **config}))
        yield Case(name, family, f"hf:{folder}", shape, _without("transformers"))
    for entry in group.get("files", ()):
        folder = _folder_of(entry["package"])
        found = sorted(folder.glob(entry["file"])) if folder else []
        absent = f"package {entry['package']} is not installed" if folder is None else None
        absent = absent or (None if found else f"{entry['package']} holds no {entry['file']}")
        arch = f"{HERE / 'lite.py'}:{entry['arch']}" if "arch" in entry else None
        source = str(found[0]) if found else ""
        yield Case(entry["name"], family, source, entry.get("shape"), absent, arch, _integers(entry, scratch))


def _integers(entry: dict[str, Any], scratch: Path) -> str | None:
    """Write random integers from a lowest to below a highest, of a length, for each input that the entry names."""
    if "integers" not in entry:
        return None
    chance, path = np.random.default_rng(0), scratch / f"{entry['name']}.npz"
    np.savez(path, **{n: chance.integers(a, b, (16, size), np.int32) for n, (a, b, size) in entry["integers"].items()})
    return str(path)


def _folder_of(package: str) -> Path | None:
    if (PACKAGES / package).is_dir():
        return PACKAGES / package
    found = find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def _without(package: str | None) -> str | None:
    return f"package {package} is not installed" if package and find_spec(package) is None else None
