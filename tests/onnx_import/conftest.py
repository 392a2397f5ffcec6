from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.onnx_import import Imported, import_onnx
from edgeopt.sources.torchvision_ops import import_torchvision

import_torchvision()  # timm imports it
torch.set_num_threads(1)

Arrays = Mapping[str, np.ndarray]


def _onnx_type(array: np.ndarray) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    """Build a model from nodes: `inputs` are fed, `constants` stored, output shapes left open."""

    def make(
        nodes: list[onnx.NodeProto],
        inputs: Arrays,
        constants: Arrays | None = None,
        outputs: Mapping[str, int] | None = None,
        opset: int = 17,
        dims: Mapping[str, list[Any]] | None = None,
    ) -> onnx.ModelProto:
        outputs = outputs or {"y": TensorProto.FLOAT}
        graph = helper.make_graph(
            nodes,
            "test",
            [
                helper.make_tensor_value_info(name, _onnx_type(a), (dims or {}).get(name, list(a.shape)))
                for name, a in inputs.items()
            ],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(a, name) for name, a in (constants or {}).items()],
        )
        for output in graph.output:  # present but unknown, as the checker wants it
            output.type.tensor_type.shape.SetInParent()
            output.type.tensor_type.ClearField("shape")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8 if opset < 19 else 10
        model = onnx.shape_inference.infer_shapes(model)
        for output in model.graph.output:  # onnx infers nothing for some function operators
            if not output.type.tensor_type.HasField("shape"):
                for _ in next(iter(inputs.values())).shape:
                    output.type.tensor_type.shape.dim.add()
        return model

    return make


@pytest.fixture
def same_as_ort(tmp_path: Path) -> Callable[..., Imported]:
    """Import a model, run it and onnxruntime on the same inputs, compare every output."""

    def check(model: onnx.ModelProto, inputs: Arrays, rtol: float = 1e-4, atol: float = 1e-5) -> Imported:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        imported = import_onnx(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, dict(inputs))
        with torch.no_grad():
            got = imported.module(*(torch.from_numpy(np.array(a)) for a in inputs.values()))
        results = got if isinstance(got, tuple) else (got,)
        assert imported.output_names == tuple(o.name for o in model.graph.output)
        for result, reference in zip(results, expected, strict=True):
            assert tuple(result.shape) == np.shape(reference)
            assert result.numpy().dtype == np.asarray(reference).dtype
            np.testing.assert_allclose(result.numpy(), reference, rtol=rtol, atol=atol)
        return imported

    return check


@pytest.fixture
def check_op(
    same_as_ort: Callable[..., Imported], make_model: Callable[..., onnx.ModelProto]
) -> Callable[..., Imported]:
    """Compare one operator. Float arrays in `args` are fed, others stored; None omits an input."""

    def check(
        op: str,
        *args: np.ndarray | None,
        opset: int = 17,
        outputs: tuple[int, ...] = (TensorProto.FLOAT,),
        stored: tuple[int, ...] = (),
        rtol: float = 1e-4,
        atol: float = 1e-5,
        **attributes: Any,
    ) -> Imported:
        names = [f"in{i}" if a is not None else "" for i, a in enumerate(args)]
        fed = {n: a for i, (n, a) in enumerate(zip(names, args, strict=True)) if a is not None and i not in stored}
        kept = {n: args[i] for i, n in enumerate(names) if i in stored and args[i] is not None}
        results = ["y", *(f"y{i}" for i in range(1, len(outputs)))]
        node = helper.make_node(op, names, results, name=f"the_{op.lower()}", **attributes)
        model = make_model([node], fed, kept, dict(zip(results, outputs, strict=True)), opset)
        return same_as_ort(model, fed, rtol, atol)

    return check


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def random() -> Callable[..., np.ndarray]:
    """Seeded float32 noise of a shape."""
    return _random
