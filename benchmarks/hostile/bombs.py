"""Small files that ask for more memory, disk or time than there is."""

from __future__ import annotations

import functools
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import onnx
from case import OPENERS, Case, Place
from damage import rewritten
from onnx import TensorProto, helper, numpy_helper
from seeds import configuration, keras_archive, keras_hdf5, layer, model, value

UNPACKED = 2**31
HUGE = (2**31 - 1, 2**40, 2**62)


def decompression(place: Place) -> Iterator[Case]:
    kind = "decompression bombs"
    for name, members in {
        "net.pt": ("data/0", "data.pkl", "data/9", "byteorder"),
        "net.pt2": ("models/model.json", "data/weights/weight_0", "data/sample_inputs/model.pt", "archive_format"),
        "net.keras": ("config.json", "model.weights.h5", "metadata.json"),
        "data.npz": ("x.npy", "y.npy"),
        "images.zip": ("0/a.png", "3/b.png"),
    }.items():
        seed = place.seeds[name]
        for member in members:
            path = place.new(f"zeros{seed.suffix}")
            _with_zeros(seed, path, member)
            yield Case(kind, f"{name}: 2 GiB of zeros as {member}", OPENERS[seed.suffix], path)
        for size in (0xFFFFFFF0, 0x7FFFFFFF):
            path = place.new(f"declared{seed.suffix}")
            content = bytearray(seed.read_bytes())
            for entry in re.finditer(rb"PK\x01\x02", bytes(content)):
                struct.pack_into("<I", content, entry.start() + 24, size)
            path.write_bytes(content)
            # An array says itself how long it is, and below the limit nothing else counts.
            harmless = name == "data.npz" and size == 0x7FFFFFFF
            yield Case(kind, f"{name}: members of {size} bytes, as they say", OPENERS[seed.suffix], path, harmless)
        path = place.new(f"many{seed.suffix}")
        rewritten(seed, path, {f"data/{i}": b"" for i in range(50_000)})
        yield Case(kind, f"{name}: 50,000 members", OPENERS[seed.suffix], path, True)
    for side in (2**14, 2**16, 2**20, 2**30):
        path = place.new("bomb.png")
        path.write_bytes(_png(side))
        yield Case(kind, f"PNG of {side} × {side} pixels", "image", path)
    for shape in ((2**20, 2**20), (2**31, 2**20), (2**40,)):
        path = keras_hdf5(place.new("bomb.h5"))
        with h5py.File(path, "a") as file:
            file.create_dataset("model_weights/bomb", shape, "f4", chunks=(1024,) * len(shape), compression="gzip")
        yield Case(kind, f"HDF5 dataset of shape {shape}", "keras", path)
    for size in (2**31, 2**40, 2**62):
        path = place.new("header.safetensors")
        header = json.dumps({"conv.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, size * 4]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        yield Case(kind, f"safetensors tensor of {size} elements", "source", path)
        path = place.new("length.safetensors")
        path.write_bytes(struct.pack("<Q", size) + b"{}")
        yield Case(kind, f"safetensors header of {size} bytes", "source", path)
        path = place.new("header.npz")
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size}, 3, 8, 8)}}\n".encode()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))
        yield Case(kind, f"NumPy array of {size} samples", "data", path)


def graphs(place: Place) -> Iterator[Case]:
    """ONNX graphs that never end or need more memory than there is."""
    kind = "ONNX loops, functions, sizes"
    for count in (10**6, 2**62):
        for depth in (1, 2, 4):
            yield _onnx(place, kind, f"Loop of {count}, {depth} deep", _loops(count, depth))
    for width, depth in ((8, 30), (2, 60), (3, 40), (40, 8), (1000, 3)):
        yield _onnx(place, kind, f"functions {depth} deep, {width} calls each", _functions(width, depth))
    for length in (1, 2, 5):
        yield _onnx(place, kind, f"functions that call themselves, {length} apart", _cycle(length))
    for depth in (5, 30, 300, 2_000):
        path = place.new("bomb.onnx")
        path.write_bytes(_branches(depth))
        yield Case(kind, f"If {depth} deep", "source", path, depth < 100)
    for size in HUGE:
        shape = numpy_helper.from_array(np.array([size], np.int64), "n")
        yield _onnx(
            place, kind, f"ConstantOfShape {size}", _sized(helper.make_node("ConstantOfShape", ["n"], ["b"]), shape)
        )
        yield _onnx(place, kind, f"Expand to {size}", _sized(helper.make_node("Expand", ["s", "n"], ["b"]), shape))
        ends = [numpy_helper.from_array(np.array(v, np.int64), f"r{i}") for i, v in enumerate((0, size, 1))]
        yield _onnx(place, kind, f"Range {size}", _sized(helper.make_node("Range", ["r0", "r1", "r2"], ["b"]), *ends))
        tiles = numpy_helper.from_array(np.array([1, 1, size, 1], np.int64), "t")
        yield _onnx(place, kind, f"Tile {size}", model([helper.make_node("Tile", ["x", "t"], ["y"])], [tiles]))
        pads = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, size, 0], np.int64), "p")
        yield _onnx(place, kind, f"Pad {size}", model([helper.make_node("Pad", ["x", "p"], ["y"])], [pads]))
        sizes = numpy_helper.from_array(np.array([1, 1, size, 8], np.int64), "z")
        resize = helper.make_node("Resize", ["x", "", "", "z"], ["y"], mode="nearest")
        yield _onnx(place, kind, f"Resize to {size}", model([resize], [sizes]))
        huge = model([helper.make_node("Relu", ["x"], ["y"])])
        huge.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size
        yield _onnx(place, kind, f"an input of {size} rows", huge)
        weight = TensorProto(name="w", data_type=1, dims=[size, 4], raw_data=bytes(64))
        yield _onnx(
            place, kind, f"a weight of {size} rows", model([helper.make_node("Add", ["x", "w"], ["y"])], [weight])
        )
    for depth in (12, 40):
        nodes, last = [], "x"
        for index in range(depth):
            nodes.append(helper.make_node("Concat", [last] * 8, [f"c{index}"], axis=3))
            last = f"c{index}"
        nodes.append(helper.make_node("ReduceMax", [last], ["y"]))
        yield _onnx(place, kind, f"Concat of eight, {depth} times", model(nodes))


def configurations(place: Place) -> Iterator[Case]:
    """Keras configurations that ask for what no model has."""
    for size in (2**31, 2**40, 10**30):
        for name, config in {
            "units": configuration(layer("Dense", units=size)),
            "input": configuration({"class_name": "InputLayer", "config": {"batch_shape": [None, size, 3]}}),
            "filters": configuration(layer("Conv2D", filters=size, kernel_size=[3, 3])),
        }.items():
            path = keras_archive(place.new("big.keras"), config)
            yield Case("sizes in Keras files", f".keras {name} of {size}", "keras", path)
    for depth in (5_000, 100_000):
        path = place.new("deep.keras")
        rewritten(place.seeds["net.keras"], path, {"config.json": b'{"class_name": ' + b"[" * depth}, ("config.json",))
        yield Case("sizes in Keras files", f".keras nested {depth} deep", "keras", path)


def _onnx(place: Place, kind: str, name: str, document: onnx.ModelProto, *, harmless: bool = False) -> Case:
    path = place.new("bomb.onnx")
    path.write_bytes(document.SerializeToString())
    return Case(kind, name, "source", path, harmless)


def _loops(count: int, depth: int) -> onnx.ModelProto:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    for level in range(depth):
        inner = helper.make_graph(
            [helper.make_node("Identity", [f"go{level}"], [f"went{level}"]), *body], f"body{level}",
            [helper.make_tensor_value_info(f"i{level}", 7, []), helper.make_tensor_value_info(f"go{level}", 9, []),
             value("a")],
            [helper.make_tensor_value_info(f"went{level}", 9, []), value("b")],
        )  # fmt: skip
        body = [helper.make_node("Loop", ["count", "true", "x" if level == depth - 1 else "a"], ["b"], body=inner)]
    body[0].output[0] = "y"
    constants = [
        numpy_helper.from_array(np.array(count, np.int64), "count"),
        numpy_helper.from_array(np.array(True), "true"),
    ]
    return model(body, constants)


def _functions(width: int, depth: int) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(depth):
        nodes, last = [], "a"
        for index in range(width):
            result = "b" if index == width - 1 else f"v{index}"
            calls = ("Relu", "") if level == 0 else (f"f{level - 1}", "own")
            nodes.append(helper.make_node(calls[0], [last], [result], domain=calls[1]))
            last = result
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], nodes, opsets))
    return model([helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="own")], functions=functions)


def _cycle(length: int) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own", f"f{i}", ["a"], ["b"],
            [helper.make_node(f"f{(i + 1) % length}", ["a"], ["b"], domain="own")], opsets,
        )
        for i in range(length)
    ]  # fmt: skip
    return model([helper.make_node("f0", ["x"], ["y"], domain="own")], functions=functions)


def _branches(depth: int) -> bytes:
    """Return a model of that many branches in one another, written by hand: protobuf would refuse to."""
    outer = model([helper.make_node("Relu", ["x"], ["y"])], [numpy_helper.from_array(np.array(True), "yes")])
    node = helper.make_node("Relu", ["x"], ["r"]).SerializeToString()
    result = value("r").SerializeToString()
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["r"])], "else", [], [value("r")])
    for level in range(depth):
        graph = _field(1, node) + _field(2, b"then") + _field(12, result)
        shell = helper.make_node("If", ["yes"], ["y" if level == depth - 1 else "r"], else_branch=other)
        then = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        node = shell.SerializeToString() + _field(5, then)
    del outer.graph.node[:]
    graph = outer.graph.SerializeToString() + _field(1, node)
    outer.ClearField("graph")
    return outer.SerializeToString() + _field(7, graph)


def _field(number: int, content: bytes) -> bytes:
    """Return one length-delimited field of protobuf's encoding."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def _sized(node: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    scalar = numpy_helper.from_array(np.zeros(1, np.float32), "s")
    nodes = [
        node,
        helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["f"], to=1),
    ]
    return model([*nodes, helper.make_node("Add", ["x", "f"], ["y"])], [scalar, *constants])


def _with_zeros(seed: Path, path: Path, member: str) -> None:
    """Copy an archive with one member replaced by `UNPACKED` zeros, deflated."""
    stream, checksum = _deflated_zeros()
    with zipfile.ZipFile(seed) as old, zipfile.ZipFile(path, "w") as new:
        names = old.namelist()
        root = names[0].partition("/")[0] + "/" if seed.suffix in (".pt", ".pt2") else ""
        for name in names:
            if name != root + member:
                new.writestr(zipfile.ZipInfo(name), old.read(name))
        entry = zipfile.ZipInfo(root + member)
        new.writestr(entry, stream)
        local, central = entry.header_offset, new.fp.tell()
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02", central)
    for start, method, sizes in ((local, 8, 14), (central, 10, 16)):
        struct.pack_into("<H", content, start + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<III", content, start + sizes, checksum, len(stream), UNPACKED)
    path.write_bytes(content)


@functools.cache
def _deflated_zeros() -> tuple[bytes, int]:
    """Return `UNPACKED` zeros as a deflate stream, made of one block many times, and their CRC."""
    block = bytes(2**24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    count, checksum = UNPACKED // len(block), 0
    for _ in range(count):
        checksum = zlib.crc32(block, checksum)
    return part * count + packer.flush(), checksum


def _png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = io.BytesIO(zlib.compress(bytes(2**20)))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels.read()) + chunk(b"IEND", b"")
