"""Files that would run code when they are opened carelessly: each payload would create a file of its own."""

from __future__ import annotations

import base64
import builtins
import io
import json
import marshal
import os
import pickle
import runpy
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from case import OPENERS, Case, Place
from damage import rewritten
from seeds import configuration, keras_archive, keras_hdf5, layer, small_onnx

KIND = "pickles and other code"
CONSTANTS = "data/constants/model_constants_config.json"


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def gadgets(mark: Path) -> dict[str, Payload]:
    """Return payloads by name, each of which would create `mark`."""
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "system": Payload(os.system, f"touch {mark}"),
        "popen": Payload(os.popen, f"touch {mark}"),
        "exec": Payload(builtins.exec, code),
        "eval": Payload(builtins.eval, code),
        "Popen": Payload(subprocess.Popen, ["touch", str(mark)]),
        "open": Payload(builtins.open, str(mark), "w"),
        "mkdir": Payload(os.mkdir, str(mark)),
        "runpy": Payload(runpy._run_code, code, {}),
        "numpy": Payload(np.memmap, str(mark), "uint8", "w+", 0, (1,)),
    }


def pickles(place: Place) -> Iterator[Case]:
    for suffix in (".pt", ".pth"):
        for name in gadgets(place.mark()):
            for form in ("raw", "zip", "legacy", "nested"):
                mark = place.mark()
                path = place.new(f"{name}-{form}{suffix}")
                _checkpoint(path, gadgets(mark)[name], form)
                yield Case(KIND, f"{suffix} {form} {name}", "source", path)
    for protocol in range(6):
        mark = place.mark()
        path = place.new(f"protocol-{protocol}.pt")
        path.write_bytes(pickle.dumps(gadgets(mark)["system"], protocol))
        yield Case(KIND, f".pt protocol {protocol}", "source", path)
    places = (
        "data/sample_inputs/model.pt",
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/weights/weight_0",
    )
    for member in (*places, "data/constants/opaque_obj_0", "data/constants/custom_obj_0", "data.pkl", "constants.pkl"):
        for form in ("raw", "zip"):
            mark = place.mark()
            path = place.new("evil.pt2")
            content = {member: _bytes(gadgets(mark)["system"], form)}
            if "obj_0" in member:
                content[CONSTANTS] = _naming(Path(member).name)
            rewritten(place.seeds["net.pt2"], path, content, tuple(content))
            yield Case(KIND, f".pt2 {form} in {member}", "source", path)
    yield from _arrays(place)
    for suffix in OPENERS:
        if suffix in (".pt", ".pth", ".mlpackage"):
            continue
        mark = place.mark()
        path = place.new(f"pickle{suffix}")
        path.write_bytes(pickle.dumps(gadgets(mark)["system"]))
        yield Case(KIND, f"a pickle called {suffix}", OPENERS[suffix], path)
    for name in ("pytorch_model.bin", "model.bin.py", "modeling.py"):
        yield from _hugging_face(place, name)


def names(place: Place) -> Iterator[Case]:
    """Names in graphs that PyTorch would write into Python code."""
    codes = ["{old}=__import__('os').system('touch {mark}')", '{old}", __import__("os").system("touch {mark}"), "']
    with zipfile.ZipFile(place.seeds["net.pt2"]) as archive:
        model = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        text = archive.read(model).decode()
    member = model.partition("/")[2]
    for old in ("x", "conv2d", "relu", "p_conv_weight", "torch.ops.aten.relu.default"):
        for code in (*codes, "os.system", "torch.hub.load", "a\nb"):
            mark = place.mark()
            path = place.new("names.pt2")
            forged = text.replace(f'"{old}"', json.dumps(code.format(old=old, mark=mark)))
            rewritten(place.seeds["net.pt2"], path, {member: forged.encode()}, (member,))
            plain = "\n" not in code and "(" not in code and "default" not in old
            yield Case("code in names", f".pt2 {old} {code[:18]!r}", "source", path, plain or forged == text)
    for code in codes:
        for what in ("node", "weight", "input", "domain"):
            mark = place.mark()
            path = place.new("names.onnx")
            onnx.save(_renamed(code.format(old="n", mark=mark), what), path)
            yield Case("code in names", f".onnx {what} {code[:18]!r}", "source", path, what != "domain")
    guard = "__import__('os').system('touch {mark}')"
    for key in ("guards_code", "range_constraints"):
        mark = place.mark()
        document = json.loads(text)
        document[key] = [guard.format(mark=mark)] if key == "guards_code" else {guard.format(mark=mark): {}}
        path = place.new("guards.pt2")
        rewritten(place.seeds["net.pt2"], path, {member: json.dumps(document).encode()}, (member,))
        yield Case("code in names", f".pt2 {key}", "source", path)


def keras(place: Place) -> Iterator[Case]:
    for make, suffix in ((keras_archive, ".keras"), (keras_hdf5, ".h5")):
        for name in _layers(place.mark()):
            mark = place.mark()
            path = place.new(f"m{suffix}")
            make(path, configuration(_layers(mark)[name]))
            yield Case("code in Keras files", f"{suffix} {name}", "keras", path)
    for member in ("data.pkl", "assets/x.so", "code.py", "assets/__init__.py"):
        mark = place.mark()
        path = place.new("m.keras")
        keras_archive(path, None, **{member: pickle.dumps(gadgets(mark)["system"])})
        yield Case("code in Keras files", f".keras member {member}", "keras", path)


def _layers(mark: Path) -> dict[str, dict]:
    code = base64.b64encode(marshal.dumps(compile(f"open({str(mark)!r}, 'w')", "x", "eval"))).decode()
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    return {
        "Lambda": layer("Lambda", function=function),
        "old Lambda": layer("Lambda", module=None, function=[code, None, None], function_type="lambda"),
        "registered Lambda": {"class_name": "Custom>Lambda", "config": {"function": function}},
        "TFOpLambda": layer("TFOpLambda", function="io.write_file"),
        "TorchModuleWrapper": layer("TorchModuleWrapper", module="keras.layers"),
        "JaxLayer": layer("JaxLayer"),
        "TFSMLayer": layer("TFSMLayer", filepath="/tmp/other"),
        "StringLookup": layer("StringLookup", vocabulary="/etc/passwd"),
        "os.system": layer("system", module="os"),
        "Popen": layer("Popen", module="subprocess"),
        "module with code": layer("Dense", module=f"keras.layers; open({str(mark)!r}, 'w')"),
        "get_file": layer(
            "Dense", units=2, activation={"module": "keras.utils", "class_name": "function", "config": "get_file"}
        ),
        "eval": layer("Dense", units=2, activation={"module": "builtins", "class_name": "function", "config": "eval"}),
        "lambda initializer": layer("Dense", units=2, kernel_initializer=function),
        "lambda inside": layer("TimeDistributed", layer=layer("Lambda", function=function)),
    }


def _checkpoint(path: Path, payload: Payload, form: str) -> None:
    if form == "raw":
        path.write_bytes(pickle.dumps(payload))
    elif form == "nested":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1), "x": payload}}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")


def _naming(file: str) -> bytes:
    """Return the part of an exported program that says which file holds its constant."""
    entry = {"path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None}
    return json.dumps({"config": {"k": entry}}).encode()


def _bytes(payload: Payload, form: str) -> bytes:
    if form == "raw":
        return pickle.dumps(payload)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def _arrays(place: Place) -> Iterator[Case]:
    for member in ("x.npy", "y.npy"):
        for name in ("system", "exec", "Popen", "open"):
            mark = place.mark()
            path = place.new("data.npz")
            arrays = {"x.npy": np.zeros((2, 3, 8, 8), np.float32), "y.npy": np.arange(2)}
            objects = np.empty(2, object)
            objects[:] = [gadgets(mark)[name]] * 2
            arrays[member] = objects
            with zipfile.ZipFile(path, "w") as archive:
                for own, array in arrays.items():
                    buffer = io.BytesIO()
                    np.save(buffer, array, allow_pickle=True)
                    archive.writestr(own, buffer.getvalue())
            yield Case(KIND, f".npz {member} {name}", "data", path)
    mark = place.mark()
    path = place.new("header.npz")
    header = f"{{'descr': __import__('os').system('touch {mark}'), 'fortran_order': False, 'shape': (1,)}}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8))
    yield Case(KIND, ".npz header with code", "data", path)
    mark = place.mark()
    path = place.new("objects.h5")
    keras_hdf5(path)
    with h5py.File(path, "a") as file:
        file["model_weights/pickle"] = np.void(pickle.dumps(gadgets(mark)["system"]))
        file.attrs["training_config"] = pickle.dumps(gadgets(mark)["exec"]).hex()
        del file.attrs["model_config"]
    yield Case(KIND, ".h5 pickle in a dataset", "keras", path)


def _hugging_face(place: Place, name: str) -> Iterator[Case]:
    mark = place.mark()
    path = place.new("model")
    path.mkdir()
    own = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 20}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    if name == "pytorch_model.bin":
        _checkpoint(path / name, gadgets(mark)["system"], "zip")
    else:
        (path / name).write_text(f"open({str(mark)!r}, 'w')\nclass Net: ...\n")
        module = Path(name).stem
        own = {"architectures": ["Net"], "model_type": "own", "auto_map": {"AutoModel": f"{module}.Net"}}
    (path / "config.json").write_text(json.dumps(own | sizes))
    yield Case(KIND, f"a Hugging Face folder with {name}", "folder", path)


def _renamed(text: str, what: str) -> onnx.ModelProto:
    chance = np.random.default_rng(0)
    shapes = {"conv.weight": (4, 1, 3, 3), "conv.bias": (4,), "head.weight": (5, 144), "head.bias": (5,)}
    document = small_onnx({n: chance.random(s, np.float32) for n, s in shapes.items()})
    graph = document.graph
    if what == "domain":
        graph.node[1].domain = text
    elif what == "node":
        for node in graph.node:
            node.name = text + node.op_type
    else:
        old = "x" if what == "input" else "conv.weight"
        for holder in (*graph.initializer, *graph.input):
            holder.name = text if holder.name == old else holder.name
        for node in graph.node:
            node.input[:] = [text if n == old else n for n in node.input]
    return document
