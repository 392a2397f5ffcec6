"""Files that would read or write outside their place: external data, links, members called `../x`."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import onnx
from case import Case, Place
from damage import rewritten
from onnx import TensorProto, helper
from seeds import keras_archive, keras_hdf5, model, value

OUTSIDE = ("../{own}", "/{abs}", "a/../../{own}", "..\\{own}", "./../{own}", "a/b/../../../{own}")


def members(place: Place) -> Iterator[Case]:
    """Archives whose members would be written outside the folder that they are unpacked to."""
    for name in ("net.pt", "net.pt2", "net.keras", "data.npz", "images.zip"):
        seed = place.seeds[name]
        for pattern in OUTSIDE:
            mark = place.mark()
            member = pattern.format(own=os.path.relpath(mark, place.root / "0000"), abs=str(mark).lstrip("/"))
            path = place.new(f"members{seed.suffix}")
            suffix = {"images.zip": ".png", "data.npz": ".npy"}.get(name, "")
            content = place.seeds["image.png"].read_bytes()
            if name == "net.keras":
                keras_archive(path, None, **{member: content})
            else:
                rewritten(seed, path, {f"!{member}{suffix}": content})
            opener = "keras" if name == "net.keras" else "data" if name in ("data.npz", "images.zip") else "source"
            # What is never unpacked to disk may be ignored: arrays and images are read by name inside the archive.
            yield Case("zip members with `..`", f"{name} {pattern}", opener, path, opener == "data" or name == "net.pt")
        mark = place.mark()
        path = place.new(f"link{seed.suffix}")
        rewritten(seed, path, {})
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("0/link.png" if name == "images.zip" else "link")
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
        opener = "keras" if name == "net.keras" else "data" if name in ("data.npz", "images.zip") else "source"
        yield Case("zip members with `..`", f"{name} symbolic link", opener, path, name in ("data.npz", "net.pt"))


def external_data(place: Place) -> Iterator[Case]:
    """ONNX weights that stand in other files, and HDF5 files that read others."""
    kind = "external data outside its folder"
    for name in ("parent", "absolute", "through", "symbolic link", "hard link", "linked folder", "folder", "missing",
                 "device", "fifo", "negative offset", "too long", "no length", "url", "null",
                 "model itself"):  # fmt: skip
        path = place.new("external.onnx")
        secret = place.root / "secret.bin"
        secret.write_bytes(np.ones(64, np.float32).tobytes())
        location, more = _external(name, path, secret)
        weight = TensorProto(name="w", data_type=1, dims=[1, 1, 8, 8], data_location=TensorProto.EXTERNAL)
        for key, told in {"location": location, "length": "256"}.items():
            weight.external_data.add(key=key, value=more.pop(key, told))
        for key, told in more.items():
            weight.external_data.add(key=key, value=told)
        path.write_bytes(model([helper.make_node("Add", ["x", "w"], ["y"])], [weight]).SerializeToString())
        yield Case(kind, f".onnx {name}", "source", path, name == "no length")
    for name in ("attribute", "inside an If"):
        path = place.new("external.onnx")
        weight = TensorProto(name="w", data_type=1, dims=[1, 1, 8, 8], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value="../secret.bin")
        path.write_bytes(_hidden(weight, name).SerializeToString())
        yield Case(kind, f".onnx {name}", "source", path)
    for name in ("external", "soft", "dangling", "storage", "virtual", "relative storage"):
        path = keras_hdf5(place.new("m.h5"))
        other = path.parent.parent / "other.h5"
        with h5py.File(other, "w") as file:
            file["secret"] = np.ones(4, np.float32)
        _hdf5(path, other, name)
        yield Case(kind, f".h5 {name}", "keras", path)


def _external(name: str, path: Path, secret: Path) -> tuple[str, dict[str, str]]:
    own = path.parent / "own.bin"
    own.write_bytes(secret.read_bytes())
    link = path.parent / "link.bin"
    if name == "symbolic link":
        link.symlink_to(secret)
    elif name == "hard link":
        link.hardlink_to(secret)
    elif name == "linked folder":
        (path.parent / "sub").symlink_to(secret.parent)
    elif name == "folder":
        link.mkdir()
    elif name == "fifo":
        os.mkfifo(link)
    places = {
        "parent": f"../{secret.name}", "absolute": str(secret), "through": f"a/../../{secret.name}",
        "linked folder": f"sub/{secret.name}", "missing": "missing.bin", "device": "/dev/zero",
        "url": "http://localhost/x.bin", "null": "own.bin\x00x", "model itself": path.name,
    }  # fmt: skip
    inside = name in ("negative offset", "too long", "no length")
    more = {"negative offset": {"offset": "-8"}, "too long": {"length": str(2**40)}, "no length": {"length": "256"}}
    return places.get(name, own.name if inside else link.name), dict(more.get(name, {}))


def _hidden(weight: TensorProto, name: str) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    if name == "attribute":
        return model([constant, helper.make_node("Add", ["x", "w"], ["y"])])
    result = [value("r")]
    then = helper.make_graph([constant, helper.make_node("Add", ["x", "w"], ["r"])], "then", [], result)
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["r"])], "else", [], result)
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return model([helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)], [yes])


def _hdf5(path: Path, other: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        group = file["model_weights"]
        if name == "external":
            group["x"] = h5py.ExternalLink(str(other), "secret")
        elif name in ("soft", "dangling"):
            group["x"] = h5py.SoftLink("/model_weights/dense" if name == "soft" else "/nowhere")
        elif "storage" in name:
            target = "/etc/passwd" if name == "storage" else "../other.h5"
            group.create_dataset("x", (4,), "f4", external=[(target, 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
            group.create_virtual_dataset("x", layout)
