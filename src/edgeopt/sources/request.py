"""What the user named, told apart without unpickling or parsing it; importing this loads nothing heavy."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from edgeopt.core.model import TensorSpec

SUFFIXES = {
    ".h5": "keras",
    ".hdf5": "keras",
    ".keras": "keras",
    ".onnx": "onnx",
    ".pt": "weights",
    ".pt2": "program",
    ".pth": "weights",
    ".safetensors": "weights",
}
PREFIXES = {"hf": "transformers", "yolo": "ultralytics"}
"""Short prefixes, and the plugins that they stand for."""
PREFIXED = re.compile(r"[a-z][a-z0-9_-]+:")
PEEKED_BYTES = 2**20


@dataclass(frozen=True)
class SourceRequest:
    """One model to load.

    Attributes:
        kind: the plugin that loads it.
        location: what follows the prefix, or an absolute path (with `:factory` for code).
        card: of the model, or one made of defaults.
        folder: that relative paths of the card start from.
        name: of the model, fit for file names.
        spoken: what the user wrote.
        arch: `file.py:factory` that builds the module for a file of weights.
        trust: may run code that comes with a file.
        shapes: input shapes asked for, by position: of all inputs, or of those alone whose dimensions are open.
        named_shapes: the same by name.
    """

    kind: str
    location: str
    card: ModelCard
    folder: Path
    name: str
    spoken: str
    arch: str | None = None
    trust: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    named_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def shapes_by_name(self, inputs: Sequence[str], open_inputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Tell which input each of the shapes asked for is meant for.

        Args:
            inputs: names of all inputs.
            open_inputs: of those that have dimensions without a size.

        Raises:
            UsageError: an unknown name, or as many shapes as fit neither all inputs nor the open ones.
        """
        found = dict(self.named_shapes)
        for name in found:
            if name not in inputs:
                raise UsageError(f"{self.spoken} has no input {name!r}{did_you_mean(name, inputs)}")
        if not self.shapes:
            return found
        targets = inputs if len(self.shapes) == len(inputs) else open_inputs
        if len(self.shapes) != len(targets):
            few = f", {len(open_inputs)} of them with open dimensions" if len(open_inputs) < len(inputs) else ""
            raise UsageError(f"{self.spoken} has {len(inputs)} inputs{few}; --input-shape gives {len(self.shapes)}")
        return {**dict(zip(targets, self.shapes, strict=True)), **found}


@dataclass(frozen=True)
class Loaded:
    """What a source plugin returns: a module in eval mode with its inputs.

    Attributes:
        module, inputs, outputs: `inputs` is empty where the file does not tell; the card or the user must then.
        card_options: what the file tells of the model's card.
        notes: for the manifest.
        shaped: `inputs` have the shapes asked for already.
        ranges: minimum and maximum of values, where a quantized file gives them, by the path of the module that
            computes a value, else by the name of the input or of the torch.fx node.
    """

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[str, ...] = ()
    card_options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shaped: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def understand(
    source: str,
    *,
    arch: str | None = None,
    trust: bool = False,
    shapes: tuple[tuple[int, ...], ...] = (),
    folder: Path | None = None,
) -> SourceRequest:
    """Tell what `source` is: a card, `file.py:factory`, `timm:NAME`, `hf:FOLDER`, `yolo:FILE`, or a file by its suffix.

    Raises:
        UsageError: no such file, no such prefix, or a suffix that nothing reads.
    """
    folder = folder or Path.cwd()
    if source.endswith((".yaml", ".yml")) and not PREFIXED.match(source):
        return _from_card(folder / source, arch, trust, shapes)
    card = ModelCard(source=source, arch=arch)
    kind, location = _classify(source, folder, arch)
    chosen = _absolute(arch, folder)
    return SourceRequest(kind, location, card, folder, _short_name(source), source, chosen, trust, shapes)


def _from_card(path: Path, arch: str | None, trust: bool, shapes: tuple[tuple[int, ...], ...]) -> SourceRequest:
    card = read_card(path)
    folder = path.resolve().parent
    if card.source.endswith((".yaml", ".yml")) and not PREFIXED.match(card.source):
        raise UsageError(f"{path}: source {card.source!r} is a card itself; name the model's file")
    kind, location = _classify(card.source, folder, arch or card.arch)
    for code in filter(None, (location if kind == "code" else None, _absolute(card.arch, folder))):
        file = Path(code.rpartition(":")[0]).resolve()
        if not trust and not file.is_relative_to(folder):
            raise UsageError(f"{path}: runs {file}, outside the card's folder; --trust-source allows it")
    name = folder.name if path.stem == "card" else path.stem
    chosen = _absolute(arch, Path.cwd()) or _absolute(card.arch, folder)
    return SourceRequest(kind, location, card, folder, _clean(name), str(path), chosen, trust, shapes)


def _classify(source: str, folder: Path, arch: str | None) -> tuple[str, str]:
    if re.search(r"\.py:\w+$", source):
        file, _, factory = source.rpartition(":")
        return "code", f"{_existing(folder / file)}:{factory}"
    if source.endswith(".py"):
        raise UsageError(f"{source}: name the function that builds the model too, as {source}:build")
    prefix, colon, rest = source.partition(":")
    if colon and re.fullmatch(r"[a-z][a-z0-9_-]+", prefix):
        from edgeopt import plugins  # entry points are read only where a prefix asks for them

        known = [n for n in plugins.names("sources") if n not in ("code", *SUFFIXES.values())] + [*PREFIXES]
        if prefix not in known:
            raise UsageError(f"{source}: unknown source prefix {prefix!r}{did_you_mean(prefix, known)}")
        return PREFIXES.get(prefix, prefix), rest
    path = folder / source
    if path.name == "saved_model.pb":
        path = path.parent
    if (path / "saved_model.pb").is_file():
        return "keras", str(path.resolve())
    if (path / "config.json").is_file():
        return "transformers", str(path.resolve())
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        _existing(path)
        raise UsageError(
            f"{source}: not a model that edgeopt reads; known: *.yaml cards, file.py:factory, timm:NAME, hf:FOLDER, "
            f"yolo:FILE, SavedModel folders, {', '.join(sorted(SUFFIXES))}"
        )
    existing = _existing(path)
    if kind == "weights" and arch is None and _names_ultralytics(existing):
        kind = "ultralytics"
    return kind, str(existing)


def _names_ultralytics(path: Path) -> bool:
    """Tell whether a checkpoint's pickle names classes of ultralytics; it is read as bytes, not unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if member is None:
                return False
            with archive.open(member) as pickle:
                return b"ultralytics." in pickle.read(PEEKED_BYTES)
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name the model's card or file in it")
    return path.resolve()


def _absolute(arch: str | None, folder: Path) -> str | None:
    if arch is None:
        return None
    if not re.search(r"\.py:\w+$", arch):
        raise UsageError(f"architecture {arch!r}: expected file.py:factory")
    file, _, factory = arch.rpartition(":")
    return f"{_existing(folder / file)}:{factory}"


def _short_name(source: str) -> str:
    if re.search(r"\.py:\w+$", source):
        file, _, factory = source.rpartition(":")
        return _clean(f"{Path(file).stem}-{factory}")
    tail = source.partition(":")[2] or source
    if source.startswith("hf:"):
        return _clean(Path(tail.partition("@")[0]).name)
    return _clean(Path(tail).stem)


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "model"
