"""Files cut short, with bits flipped, or of another kind than their name says."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from case import OPENERS, Case, Place

CHEAP = (
    *("net.pt", "net.pth", "net.safetensors", "net.pt2", "net.onnx", "net.keras", "net.h5", "data.npz", "images.zip"),
    *("image.png", "image.jpg", "image.tiff", "image.webp", "image.bmp", "boxes.json"),
)
CONVERTED = ("net.tflite", "net.pte", "real.keras", "real.h5")
CHECKED = (".pt", ".pt2", ".keras", ".npz", ".zip", ".png")
"""These carry checksums: a cut is always found."""


def truncated(place: Place) -> Iterator[Case]:
    for name in (*CHEAP, *CONVERTED):
        if name in place.seeds:
            yield from _truncated(place, place.seeds[name])
    for part in _parts(place):
        yield from _damaged_package(place, part, "truncated", cut=True)


def flipped(place: Place) -> Iterator[Case]:
    for name in (*CHEAP, *CONVERTED):
        if name in place.seeds:
            yield from _flipped(place, place.seeds[name])
    for part in _parts(place):
        yield from _damaged_package(place, part, "bits flipped", cut=False)


def wrong_extension(place: Place) -> Iterator[Case]:
    contents = {"text": b"hello, world\n" * 9, "nothing": b"", "zeros": bytes(4096), "ones": b"\xff" * 4096}
    contents |= {
        "elf": b"\x7fELF" + bytes(200),
        "gzip": gzip.compress(b"x" * 999, mtime=0),
        "script": b"#!/bin/sh\ntouch x\n",
    }
    for name in ("net.pt", "net.safetensors", "net.onnx", "net.h5", "data.npz", "image.png", "net.tflite", "net.pte"):
        if name in place.seeds:
            contents[name.partition(".")[2]] = place.seeds[name].read_bytes()
    for suffix in OPENERS:
        if suffix == ".mlpackage":
            continue
        for kind, content in contents.items():
            # A `.pth` may be a zip archive as `.pt` is, text may be a table, and pictures are told by their content.
            same = kind == suffix[1:] or (kind, suffix) in (("pt", ".pth"), ("text", ".csv"), ("npz", ".zip"))
            if same or (kind == "png" and OPENERS[suffix] == "image"):
                continue
            path = place.new(f"{kind}{suffix}")
            path.write_bytes(content)
            yield Case("wrong extension", f"{kind} called {suffix}", OPENERS[suffix], path)


def _truncated(place: Place, seed: Path) -> Iterator[Case]:
    data = seed.read_bytes()
    shares = [0.02, 0.1, 0.25, 0.33, 0.5, 0.66, 0.75, 0.9, 0.97]
    if seed.name.startswith("real"):
        shares = [0.25, 0.75]
    for length in [0, 1, 7, *(int(len(data) * s) for s in shares), len(data) - 1]:
        path = place.new(f"cut-{length}{seed.suffix}")
        path.write_bytes(data[:length])
        whole = seed.suffix in CHECKED or length < len(data) * 0.3
        yield Case("truncated", f"{seed.name} at {length} bytes", OPENERS[seed.suffix], path, not whole)


def _flipped(place: Place, seed: Path) -> Iterator[Case]:
    data = seed.read_bytes()
    for index, count in enumerate([1, 8, 64] * (2 if seed.name.startswith("real") else 4)):
        broken = bytearray(data)
        for _ in range(count):
            broken[place.chance.randrange(len(broken))] ^= 1 << place.chance.randrange(8)
        path = place.new(f"flipped-{index}{seed.suffix}")
        path.write_bytes(broken)
        yield Case("bits flipped", f"{seed.name} {index}, {count} bits", OPENERS[seed.suffix], path, True)


def _parts(place: Place) -> list[str]:
    package = place.seeds.get("net.mlpackage")
    return sorted(str(p.relative_to(package)) for p in package.rglob("*") if p.is_file()) if package else []


def _damaged_package(place: Place, part: str, kind: str, *, cut: bool) -> Iterator[Case]:
    for index in range(4):
        path = place.new("net.mlpackage")
        shutil.copytree(place.seeds["net.mlpackage"], path)
        victim = path / part
        data = bytearray(victim.read_bytes())
        if cut:
            del data[place.chance.randrange(len(data)) :]
        else:
            for _ in range([1, 8, 64, 8][index]):
                data[place.chance.randrange(len(data))] ^= 1 << place.chance.randrange(8)
        victim.write_bytes(data)
        yield Case(kind, f"net.mlpackage {part} {index}", "artifact", path, True)


def rewritten(source: Path, target: Path, add: dict[str, bytes], drop: tuple[str, ...] = ()) -> Path:
    """Copy an archive with members left out and others added; names without `!` in front stand under its root."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        root = names[0].partition("/")[0] if all("/" in n for n in names) else ""
        for name in names:
            if name.removeprefix(f"{root}/") not in drop:
                new.writestr(name, old.read(name))
        for name, content in add.items():
            new.writestr(name[1:] if name.startswith("!") else f"{root}/{name}" if root else name, content)
    return target
