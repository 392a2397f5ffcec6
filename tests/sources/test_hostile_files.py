"""No file runs code that came with it, and no damaged file does worse than one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import zipfile

import onnx
import pytest
import torch

from edgeopt.core.errors import EdgeoptError, SourceError, UnsafeFileError

SHAPE = ((1, 1, 8, 8),)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "pwned"
    yield path
    assert not path.exists(), "code that came with a file was run"


def rewrite(source, target, change=None, add=None, drop=(), root=None):
    """Copy a zip archive with members changed, added or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            own_root, _, place = name.partition("/")
            if change and place in change:
                content = change[place](content)
            if place not in drop:
                new.writestr(f"{root or own_root}/{place}", content)
        for place, content in (add or {}).items():
            new.writestr(f"{root or own_root}/{place}" if not place.startswith("!") else place[1:], content)
    return target


def graph(change):
    def apply(content):
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return {"models/model.json": apply}


@pytest.mark.parametrize("kind", ["pickle", "zip", "nested", "tensor subclass"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_checkpoint_with_code_is_refused(load, arch, canary, tmp_path, net, kind, suffix):
    path = tmp_path / f"evil{suffix}"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(canary)))
    elif kind == "zip":
        torch.save(Payload(canary), path)
    elif kind == "nested":
        torch.save({"state_dict": {**net.state_dict(), "x": Payload(canary)}}, path)
    else:
        torch.save(
            {"model": net.state_dict(), "hooks": [print, Payload(canary)]}, path, _use_new_zipfile_serialization=False
        )
    with pytest.raises(SourceError, match=r"could run code|not a torch checkpoint") as caught:
        load(path, arch=f"{arch}:build", shapes=SHAPE)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pickled_module_is_refused_with_the_way_out(load, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafeFileError, match=r"save the state dict as \.safetensors, or pass --trust-source"):
        load(tmp_path / "module.pt", shapes=((1, 2),))
    assert load(tmp_path / "module.pt", shapes=((1, 2),), trust=True)["parameters"] == 6


@pytest.mark.parametrize(
    "place",
    ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt", "data/weights/weight_0"],
)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickles_inside_a_program_are_not_run(load, files, canary, tmp_path, place, form):
    content = pickle.dumps(Payload(canary))
    if form == "torch":
        buffer = io.BytesIO()
        torch.save(Payload(canary), buffer)
        content = buffer.getvalue()
    rewrite(files["net.pt2"], tmp_path / "evil.pt2", drop=[place], add={place: content})
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "evil.pt2")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "OPAQUE_OBJ_0", "tensor_0"])
@pytest.mark.parametrize("path_name", ["opaque_obj_0", "tensor_0", "tensor_0/../opaque_obj_0"])
def test_opaque_constants_of_a_program_are_not_unpickled(load, files, canary, tmp_path, name, path_name):
    """PyTorch reads these with plain `pickle.loads`, whatever the environment says."""
    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    content = buffer.getvalue() if path_name == "tensor_0" else pickle.dumps(Payload(canary))
    config = {"config": {"k": {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    rewrite(
        files["net.pt2"],
        tmp_path / "evil.pt2",
        change={"data/constants/model_constants_config.json": lambda _: json.dumps(config).encode()},
        add={f"data/constants/{name}": content},
    )
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "evil.pt2")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.loaded_libraries.add",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__",
        "torch.ops.aten.add.__class__.__init__",
        "torch.ops.aten.add.Tensor.__call__",
        "torch.ops.aten.sum.default.__globals__",
        "torch.ops.os.system",
        "torch._C._te",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "_operator.call",
        "math.__loader__.load_module",
        "torch.ops.aten.add.Tensor\n",
        "os.system",
        "#x",
        "",
    ],
)
def test_a_graph_that_calls_something_else_is_refused(load, files, canary, tmp_path, target):
    def forge(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = target
        document["graph_module"]["graph"]["nodes"][0]["inputs"] = [
            {"name": "command", "arg": {"as_string": f"touch {canary}"}, "kind": 1}
        ]

    rewrite(files["net.pt2"], tmp_path / "evil.pt2", change=graph(forge))
    with pytest.raises(UnsafeFileError, match="is no tensor operation; --trust-source allows it"):
        load(tmp_path / "evil.pt2")


CODE_AS_NAME = [
    "{old}=__import__('os').system('touch {canary}')",
    '{old}", __import__("os").system("touch {canary}"), "',
    "a\nb",
]


@pytest.mark.parametrize("old", ["x", "conv2d", "relu", "p_conv_weight", "conv.weight", "head"])
@pytest.mark.parametrize(
    "new",
    ["{old}=__import__('os').system('touch {canary}')", '{old}", __import__("os").system("touch {canary}"), "', "a\nb"],
)
def test_names_that_would_become_code_are_refused(load, files, canary, tmp_path, old, new):
    """PyTorch writes the names of a graph into the Python code that it compiles for it."""
    name = new.format(old=old, canary=canary)

    def forge(content):
        document = content.decode()
        assert f'"{old}"' in document
        return document.replace(f'"{old}"', json.dumps(name)).encode()

    change = dict.fromkeys(
        ("models/model.json", *(["data/weights/model_weights_config.json"] if "." in old else [])), forge
    )
    rewrite(files["net.pt2"], tmp_path / "evil.pt2", change=change)
    with pytest.raises(UnsafeFileError, match="--trust-source allows it"):
        load(tmp_path / "evil.pt2")


@pytest.mark.parametrize("new", CODE_AS_NAME)
def test_names_in_an_onnx_file_are_never_run(load, files, canary, tmp_path, new):
    """The importer builds a graph whose Python code PyTorch compiles, too."""
    model = onnx.load(files["net.onnx"])
    names = {name: new.format(old=f"n{i}", canary=canary) for i, name in enumerate(_names(model.graph))}
    for node in model.graph.node:
        node.name = names[node.output[0]]
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names[n] for n in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names[value.name]
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "evil.onnx")
    attempt(load, tmp_path / "evil.onnx", None)


def _names(graph):
    return dict.fromkeys(
        [*(v.name for v in (*graph.input, *graph.initializer)), *(o for node in graph.node for o in node.output)]
    )


EXPRESSIONS = [
    "__import__('os').system('touch {canary}')",
    "Symbol('s0').__class__",
    "Symbol('s0', **{{'commutative': __import__('os').system('touch {canary}')}})",
    "().__class__.__base__.__subclasses__()",
    "L['x'].__class__",
    "L['x'].size().__class__",
    "L[__import__('os').system('touch {canary}')]",
    "(lambda: 1)()",
    "[c for c in ()]",
    "open('{canary}', 'w')",
    "exec('1')",
    "s0.__class__",
    "1;2",
    "1 # comment",
    "f'{{1}}'",
    "'a' 'b'",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("place", ["guard", "shape"])
def test_guards_and_shapes_that_are_no_arithmetic_are_refused(load, files, canary, tmp_path, place, expression):
    text = expression.format(canary=canary)

    def forge(document):
        if place == "guard":
            document["guards_code"] = [text]
        else:
            sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
            sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    rewrite(files["dynamic.pt2"], tmp_path / "evil.pt2", change=graph(forge))
    with pytest.raises(UnsafeFileError, match="--trust-source allows it"):
        load(tmp_path / "evil.pt2")


@pytest.mark.parametrize(
    "add",
    [
        {"data/aotinductor/model/x.so": b"\x7fELF"},
        {"data/aotinductor/model/x.SO": b"\x7fELF"},
        {"data/weights/../../../pwned": b"x"},
        {"../../pwned": b"x"},
        {"!/etc/pwned": b"x"},
        {"!other/archive_format": b"pt2"},
        {"models/second.txt": b"{}"},
        {"models/deep/second.json": b"{}"},
        {"executorch/x.pte": b"x"},
        {"models/MODEL.json": b"{}"},
        {"extra/../../pwned": b"x"},
    ],
    ids=lambda add: next(iter(add)),
)
def test_members_that_a_program_does_not_need_are_refused(load, files, canary, tmp_path, add):
    rewrite(files["net.pt2"], tmp_path / "evil.pt2", add=add)
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "evil.pt2")
    assert len(str(caught.value).splitlines()) == 1


def test_a_second_graph_in_the_archive_is_checked_too(load, files, canary, tmp_path):
    with zipfile.ZipFile(files["net.pt2"]) as archive:
        document = json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("model.json"))))
    document["guards_code"] = [f"__import__('os').system('touch {canary}')"]
    rewrite(files["net.pt2"], tmp_path / "evil.pt2", add={"models/another.json": json.dumps(document)})
    with pytest.raises(UnsafeFileError):
        load(tmp_path / "evil.pt2")


def test_two_members_of_one_name_are_refused(load, files, tmp_path):
    path = tmp_path / "twice.pt2"
    rewrite(files["net.pt2"], path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("model.json"))
        archive.writestr(name, archive.read(name))
    with pytest.raises(SourceError, match="two files of one name"):
        load(path)


@pytest.mark.parametrize(
    "drop",
    ["archive_format", "models/model.json", "data/sample_inputs/model.pt", "data/weights/weight_0", "archive_version"],
)
def test_a_program_that_lacks_something(load, files, tmp_path, drop):
    rewrite(files["net.pt2"], tmp_path / "half.pt2", drop=[drop])
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "half.pt2")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b"3", b'{"graph_module": 1}', b"[" * 100_000, b"\xff\xfe"])
def test_a_program_whose_graph_is_something_else(load, files, tmp_path, document):
    rewrite(files["net.pt2"], tmp_path / "odd.pt2", change={"models/model.json": lambda _: document})
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "odd.pt2")
    assert len(str(caught.value).splitlines()) == 1


def test_an_archive_that_unpacks_to_very_much_is_refused(load, files, tmp_path):
    path = tmp_path / "bomb.pt2"
    rewrite(files["net.pt2"], path)
    content = bytearray(path.read_bytes())
    for entry in re.finditer(rb"PK\x01\x02", bytes(content)):
        struct.pack_into("<I", content, entry.start() + 24, 0xFFFFFFF0)  # the size that a member says it has
    path.write_bytes(content)
    with pytest.raises(SourceError, match="unpacks to more than 16 GiB"):
        load(path)


def attempt(load, path, arch):
    """Load a damaged file; it must come back with a result or with one line of an edgeopt error."""
    try:
        load(path, arch=f"{arch}:build" if path.suffix in (".pt", ".pth", ".safetensors") else None, shapes=SHAPE)
    except EdgeoptError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


ALL = ["net.pt", "w.pth", "net.safetensors", "net.pt2", "net.onnx"]


@pytest.mark.parametrize("name", ALL)
def test_truncated_files(load, arch, files, tmp_path, name):
    data = files[name].read_bytes()
    path = tmp_path / f"cut{files[name].suffix}"
    for length in (0, 1, 4, 30, len(data) // 3, len(data) // 2, len(data) - 200, len(data) - 1):
        path.write_bytes(data[:length])
        told = attempt(load, path, arch)
        assert told is not None and "cut" in told, f"{length} of {len(data)} bytes were accepted"


@pytest.mark.parametrize("name", ALL)
def test_flipped_bits(load, arch, files, tmp_path, name):
    data = files[name].read_bytes()
    path = tmp_path / f"flipped{files[name].suffix}"
    generator = random.Random(0)
    refused = 0
    for _ in range(12):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 8])):
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        path.write_bytes(broken)
        refused += attempt(load, path, arch) is not None
    assert refused >= (9 if name.endswith((".pt", ".pth", ".pt2")) else 0), "checksums of the archive find damage"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".pt2", ".onnx"])
@pytest.mark.parametrize("content", ["text", "png", "zip", "other"])
def test_another_kind_of_file_under_the_name(load, arch, files, tmp_path, suffix, content):
    path = tmp_path / f"wrong{suffix}"
    if content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../../pwned", "x")
    elif content == "other":
        source = "net.safetensors" if suffix != ".safetensors" else "net.onnx"
        path.write_bytes(files[source].read_bytes())
    else:
        path.write_bytes(b"hello, world\n" * 9 if content == "text" else b"\x89PNG\r\n\x1a\n" + bytes(500))
    told = attempt(load, path, arch)
    assert told is not None and "wrong" in told
    assert not (tmp_path.parent / "pwned").exists()
