from __future__ import annotations

import itertools
import os
import random as stdlib_random

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core.errors import EdgeoptError, SourceError, UnsafeFileError, UsageError
from edgeopt.onnx_import import import_onnx


@pytest.fixture
def model(random):
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1, name="fc"),
    ]
    weights = {
        "conv.weight": random(8, 3, 3, 3),
        "conv.bias": random(8),
        "fc.weight": random(5, 8),
        "fc.bias": random(5),
    }
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one_line(error: EdgeoptError) -> bool:
    return len(str(error).splitlines()) == 1


def test_no_file_and_no_onnx(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        import_onnx(tmp_path / "missing.onnx")
    for content in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(50), b"hello world", bytes(1000)):
        path = tmp_path / "wrong.onnx"
        path.write_bytes(content)
        with pytest.raises(SourceError) as caught:
            import_onnx(path)
        assert one_line(caught.value)
        assert "wrong.onnx" in str(caught.value)


def test_truncated_anywhere(model, tmp_path):
    data = model.SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in sorted({*range(0, len(data), len(data) // 60), len(data) - 1}):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError) as caught:
            import_onnx(path)
        assert one_line(caught.value)


def test_flipped_bytes_never_raise_anything_else(model, tmp_path):
    data = model.SerializeToString()
    path = tmp_path / "flipped.onnx"
    generator = stdlib_random.Random(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 8])):
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        path.write_bytes(broken)
        try:
            import_onnx(path)
        except EdgeoptError as error:
            assert one_line(error)
            refused += 1
    assert refused > 10


def test_flipped_structure_never_raises_anything_else(model, tmp_path):
    """The weights are most of the bytes; here the damage falls on the graph itself."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model)
    for tensor in skeleton.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    data = skeleton.SerializeToString()
    places = [i for i, byte in enumerate(data) if byte]
    path = tmp_path / "flipped.onnx"
    generator = stdlib_random.Random(1)
    for _ in range(200):
        broken = bytearray(data)
        broken[generator.choice(places)] = generator.randrange(256)
        path.write_bytes(broken)
        try:
            import_onnx(path)
        except EdgeoptError as error:
            assert one_line(error)


@pytest.fixture
def external(model, tmp_path):
    """Save the model with one tensor pointing at `location`."""
    folder = tmp_path / "model"
    folder.mkdir()

    def save(location, **entries):
        tensor = model.graph.initializer[0]
        (folder / "weights.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": str(location), "offset": "0", "length": str(8 * 27 * 4), **entries}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save


def test_external_data_beside_the_model_is_read(external):
    assert import_onnx(external("weights.bin")).inputs[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", "..\\secret.bin"])
def test_external_data_elsewhere_is_refused(external, tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    with pytest.raises(UnsafeFileError, match="outside the model's folder"):
        import_onnx(external(location))


def test_external_data_behind_links_is_refused(external, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    (tmp_path / "model" / "soft.bin").symlink_to(secret)
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        import_onnx(external("soft.bin"))


def test_external_data_behind_a_linked_folder_is_refused(external, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(bytes(4096))
    (tmp_path / "model" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        import_onnx(external("sub/w.bin"))


def test_external_data_behind_a_hard_link_is_refused(external, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    os.link(secret, tmp_path / "model" / "hard.bin")
    with pytest.raises(UnsafeFileError, match="hard link"):
        import_onnx(external("hard.bin"))


def test_external_data_that_is_missing_short_or_misdescribed(external, tmp_path):
    with pytest.raises(SourceError, match="missing"):
        import_onnx(external("nowhere.bin"))


@pytest.mark.parametrize("entries", [{"offset": "100"}, {"length": "99999"}, {"offset": "-1"}, {"length": "ten"}])
def test_external_data_range_is_checked(external, entries):
    with pytest.raises(SourceError, match=r"conv\.weight"):
        import_onnx(external("weights.bin", **entries))


def test_absurd_sizes_are_refused_before_any_memory_is_taken(model, tmp_path):
    path = tmp_path / "huge.onnx"
    model.graph.initializer[0].dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError):
        import_onnx(path)
    fill = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], name="fill"),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        fill, "bomb", [helper.make_tensor_value_info("x", 1, [1])], [helper.make_tensor_value_info("y", 1, [1])],
        [numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "s")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(SourceError, match="ConstantOfShape at node 'fill'"):
        import_onnx(path)


def test_absurd_input_shape_is_refused(model, tmp_path):
    path = tmp_path / "huge.onnx"
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**31
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2**31
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="input 'x'"):
        import_onnx(path)


def test_opset_outside_the_range_is_refused(model, tmp_path):
    path = tmp_path / "old.onnx"
    model.opset_import[0].version = 6
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError):
        import_onnx(path)


def test_initializer_that_does_not_fit_its_operator_is_named(model, tmp_path):
    path = tmp_path / "m.onnx"
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(7, np.float32), "conv.bias"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="conv"):
        import_onnx(path)


def _function_bomb(depth: int, width: int) -> onnx.ModelProto:
    """Each function calls the next `width` times; the last calls the first where `depth` is negative."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(abs(depth)):
        last = level == abs(depth) - 1
        names = ["a", *(f"t{i}" for i in range(width - 1)), "b"]
        callee = ("F0" if depth < 0 else "Neg") if last else f"F{level + 1}"
        nodes = [
            helper.make_node(callee, [x], [y], domain="" if callee == "Neg" else "own")
            for x, y in itertools.pairwise(names)
        ]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="own")], "bomb", [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("depth", "words"), [(30, "expand to more than"), (-3, "calls itself")])
def test_functions_that_explode_are_refused_at_once(tmp_path, depth, words):
    path = tmp_path / "bomb.onnx"
    path.write_bytes(_function_bomb(depth, 8).SerializeToString())
    with pytest.raises(SourceError, match=words):
        import_onnx(path)


def test_small_nested_functions_are_imported(tmp_path):
    path = tmp_path / "nested.onnx"
    path.write_bytes(_function_bomb(3, 3).SerializeToString())
    (negated,) = import_onnx(path).module(torch.ones(2)).unique().tolist()
    assert negated == (-1) ** 27


@pytest.mark.timeout(120)
def test_an_endless_loop_of_constants_ends_at_a_bound(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["co"]), helper.make_node("Add", ["v", "v"], ["vo"])], "body",
        [helper.make_tensor_value_info("i", 7, []), helper.make_tensor_value_info("c", 9, []),
         helper.make_tensor_value_info("v", 1, [2])],
        [helper.make_tensor_value_info("co", 9, []), helper.make_tensor_value_info("vo", 1, [2])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["trips", "go", "start"], ["w"], body=body)
    graph = helper.make_graph(
        [loop, helper.make_node("Add", ["x", "w"], ["y"])], "bomb",
        [helper.make_tensor_value_info("x", 1, [2])], [helper.make_tensor_value_info("y", 1, [2])],
        [helper.make_tensor("trips", 7, [], [2**62]), helper.make_tensor("go", 9, [], [True]),
         numpy_helper.from_array(np.ones(2, np.float32), "start")],
    )  # fmt: skip
    path = tmp_path / "loop.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    with pytest.raises(SourceError, match=r"Loop at .* runs more than 10000 times"):
        import_onnx(path)


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize"])
def test_a_constant_of_absurd_size_is_refused_before_it_is_made(tmp_path, kind):
    size = 2**30
    inputs = {
        "ConstantOfShape": ["n"], "Expand": ["x", "n"], "Tile": ["x", "n"], "Range": ["zero", "n", "one"],
        "Pad": ["x", "n"], "Resize": ["x", "", "", "n"],
    }[kind]  # fmt: skip
    values = {"n": [size], "Tile": [1, size], "Pad": [0, 0, 0, size], "Resize": [1, size], "Expand": [size, 1]}
    shape = np.array(values.get(kind, values["n"]), np.int64)
    constants = [numpy_helper.from_array(shape, "n")]
    if kind == "Range":
        constants = [helper.make_tensor(n, 7, [], [v]) for n, v in (("zero", 0), ("n", size), ("one", 1))]
    node = helper.make_node(kind, inputs, ["big"], name="made", **({"mode": "nearest"} if kind == "Resize" else {}))
    rest = [helper.make_node("Shape", ["big"], ["s"]), helper.make_node("Cast", ["s"], ["c"], to=1)]
    rest += [helper.make_node("ReduceSum", ["c"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    graph = helper.make_graph(
        [node, *rest], "net", [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, ["a", "b"])], constants,
    )  # fmt: skip
    path = tmp_path / "big.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(SourceError, match=rf"{kind} at node 'made' makes a tensor of \d+ elements or more"):
        import_onnx(path)
