"""A device profile: what to make for it and how to run it there."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.settings import Settings, read_yaml


class Kernels(Settings):
    """What the target's kernels like.

    Attributes:
        channel_multiple: channel counts that fill the kernels' tiles.
        int8_activations: integer type of static int8 activations in ONNX.
        reduce_range: weights of static int8 in ONNX use 7 of 8 bits: without VNNI, x86 adds two products of an unsigned
            and a signed byte in 16 bits, which saturates.
    """

    channel_multiple: Annotated[int, Field(gt=0)] = 8
    int8_activations: Literal["int8", "uint8"] = "int8"
    reduce_range: bool = False


class Target(Settings):
    """One device profile.

    `formats` stands in order of preference; `precision` is what `convert` makes when none is asked for.
    """

    name: str
    device: str
    description: str
    formats: Annotated[tuple[str, ...], Field(min_length=1)]
    precision: str = "fp32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    threads: Annotated[int, Field(gt=0)] = 1
    coreml_deployment_target: Literal["iOS16", "iOS17", "iOS18"] = "iOS17"
    runtime_options: Annotated[dict[str, dict[str, Any]], Field(default_factory=dict)]
    kernels: Kernels = Kernels()


def shipped_targets() -> dict[str, Path]:
    """Return name and file of every profile shipped with edgeopt."""
    installed = Path(str(resources.files("edgeopt"))) / "targets"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "targets"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def load_target(name: str) -> Target:
    """Return a shipped profile by name, or one from a `.yaml` file.

    Raises:
        UsageError: no such profile, or the file does not fit.
    """
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Target, Path(name))
    known = shipped_targets()
    if name not in known:
        raise UsageError(f"unknown target {name!r}{did_you_mean(name, known)}")
    return read_yaml(Target, known[name])
