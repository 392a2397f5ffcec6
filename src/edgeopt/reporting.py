"""Collects what verbs have left in a folder of one or several bundles."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from edgeopt.bundle.folder import MANIFEST
from edgeopt.bundle.reading import Document, open_bundle, read_document
from edgeopt.core.errors import UsageError
from edgeopt.report.contents import BundleReport, Report
from edgeopt.report.documents import Documents, bundle_report

RECIPES = ("recipe.yaml", "recipe.yml")
MAX_RECIPE_BYTES = 1 << 20


def collect(folder: Path) -> Report:
    """Return the report of a bundle, or of all bundles in a folder.

    Raises:
        UsageError: no bundle there, or a damaged document in one.
    """
    if (folder / MANIFEST).is_file():
        found = [folder]
    elif folder.is_dir():
        found = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    else:
        raise UsageError(f"{folder}: no such folder")
    if not found:
        raise UsageError(f"{folder}: holds no bundle; a bundle is what edgeopt convert writes")
    bundles = tuple(_bundle(place, folder) for place in found)
    names = list(dict.fromkeys(b.name for b in bundles))
    title = names[0] if len(names) == 1 else f"{folder.resolve().name}: {', '.join(names)}"
    return Report(title, version("edgeopt"), bundles)


def _bundle(place: Path, root: Path) -> BundleReport:
    bundle = open_bundle(place)
    recipe = next((place / name for name in RECIPES if (place / name).is_file()), None)
    documents = Documents(
        folder=place.resolve().name if place == root else place.relative_to(root).as_posix(),
        manifest=bundle.manifest,
        evaluation=bundle.companion("eval.json"),
        benchmarks=bundle.companion("bench.json"),
        gate=bundle.companion("gate.json"),
        sensitivities=_sensitivities(place),
        answers=bundle.companion("answers.json"),
        recipe=_text(recipe) if recipe else None,
    )
    try:
        return bundle_report(documents)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{place}: a document beside {MANIFEST} is not what edgeopt writes: {type(error).__name__}: {error}"
        ) from error


def _sensitivities(place: Path) -> tuple[Document, ...]:
    """Return the documents of `edgeopt sensitivity --json` or `-o`, by whatever name they lie there."""
    found = [read_document(path) for path in sorted(place.glob("sensitivity*.json"))]
    found += [read_document(path) for path in sorted(place.glob("sensitivity/*.json"))]
    return tuple(d for d in found if "sensitivity" in d)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_RECIPE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
