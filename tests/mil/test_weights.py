"""Compressed constants: decoded here, by coremltools, and as a whole network."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil
from coremltools.models import MLModel
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.mil import Evaluator, load_package, snr_db
from edgeopt.mil.constexpr import decode
from edgeopt.mil.weights import coverage

mb = mil.Builder
f32 = np.float32


def _palettize(**options: Any) -> Any:
    config = cto.OpPalettizerConfig(mode="kmeans", weight_threshold=0, **options)
    return cto.OptimizationConfig(global_config=config)


def _linear(**options: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(**{"mode": "linear_symmetric", "weight_threshold": 0, **options})
    return cto.OptimizationConfig(global_config=config)


def _prune(model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config))


# Recipe, how it is described, the weight SNR it must keep at least, and at most (for that it did something).
RECIPES: dict[str, tuple[Any, str, float, float]] = {
    "int8": (lambda m: cto.linear_quantize_weights(m, _linear()), "int8", 40, 60),
    "uint8": (lambda m: cto.linear_quantize_weights(m, _linear(mode="linear", dtype="uint8")), "uint8", 40, 60),
    "int4_blocks": (
        lambda m: cto.linear_quantize_weights(m, _linear(dtype="int4", granularity="per_block", block_size=8)),
        "int4 scaled", 15, 30,
    ),
    "palette4": (lambda m: cto.palettize_weights(m, _palettize(nbits=4)), "lut 4 bit", 18, 30),
    "palette6": (lambda m: cto.palettize_weights(m, _palettize(nbits=6)), "lut 6 bit", 30, 45),
    "palette4_groups": (
        lambda m: cto.palettize_weights(m, _palettize(nbits=4, granularity="per_grouped_channel", group_size=16)),
        "lut 4 bit", 18, 30,
    ),
    "palette4_scaled": (
        lambda m: cto.palettize_weights(m, _palettize(nbits=4, enable_per_channel_scale=True)),
        "lut 4 bit of fp32 scaled", 18, 30,
    ),
    "palette4_int8_table": (
        lambda m: cto.linear_quantize_weights(
            cto.palettize_weights(m, _palettize(nbits=4)), _linear(granularity="per_tensor"), joint_compression=True
        ),
        "lut 4 bit of int8 scaled", 15, 30,
    ),
    "palette4_vectors": (lambda m: cto.palettize_weights(m, _palettize(nbits=4, cluster_dim=2)), "lut 4 bit", 4, 20),
    "sparse": (_prune, "sparse", 5, 15),
    "sparse_palette4": (
        lambda m: cto.palettize_weights(_prune(m), _palettize(nbits=4), joint_compression=True),
        "sparse + lut 4 bit", 5, 15,
    ),
    "sparse_int8": (
        lambda m: cto.linear_quantize_weights(_prune(m), _linear(), joint_compression=True), "sparse + int8", 5, 15,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(small_net: torch.nn.Module, small_input: np.ndarray, tmp_path_factory: Any, convert: Any) -> dict[str, Path]:
    """The small network for iOS 16 and iOS 18, whose packages compress in different forms."""
    folder = tmp_path_factory.mktemp("base")
    example = (torch.from_numpy(small_input),)
    return {
        name: convert(small_net, example, folder / f"{name}.mlpackage", minimum_deployment_target=target)
        for name, target in (("iOS16", ct.target.iOS16), ("iOS18", ct.target.iOS18))
    }


def _compress(package: Path, recipe: Any, out: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-means of scikit-learn and coremltools' own deprecations
        recipe(MLModel(str(package), skip_model_load=True)).save(str(out))
    return out


def _materialize(var: Any) -> np.ndarray:
    """Decode a constant by coremltools' own code, which leaves compressed lookup tables to the caller."""
    op = var.op
    if op.op_type == "const":
        return np.asarray(var.val)
    if op.op_type == "constexpr_lut_to_dense" and op.lut.op.op_type != "const":
        return np.asarray(op.decompress(op.indices.val, _materialize(op.lut), None))
    return np.asarray(op.materialized_val_inference())


def _independent(program: Any) -> dict[str, np.ndarray]:
    """Decode every weight by coremltools, by the name of the layer that reads it."""
    return {
        op.outputs[0].name: _materialize(op.inputs["weight"]) for op in program.body.operations if "weight" in op.inputs
    }


OLD = [name for name in RECIPES if name in ("int8", "palette4", "palette6", "sparse")]


@pytest.mark.parametrize(
    ("system", "name"), [*(("iOS18", name) for name in RECIPES), *(("iOS16", name) for name in OLD)]
)
def test_compressed_package(
    system: str, name: str, base: dict[str, Path], tmp_path: Path, small_net: torch.nn.Module, small_input: np.ndarray
) -> None:
    recipe, description, least, most = RECIPES[name]
    program = load_package(_compress(base[system], recipe, tmp_path / "compressed.mlpackage"))
    report = coverage(program, load_package(base[system]))
    assert len(report.layers) == 3
    if name == "int4_blocks":  # the first layer's three input channels do not divide into blocks of eight
        assert "3 input channels do not divide into groups of 8" in report.not_quantized()[0]
    assert len(report.compressed) == (2 if name == "int4_blocks" else 3), report.not_quantized()
    assert report.damaged == ()
    assert report.stored_bytes < report.float_bytes or name == "palette4_scaled" or name.startswith("sparse")
    independent = _independent(program)
    for layer in report.compressed:
        assert layer.compression.startswith(description)
        assert layer.snr_db is not None
        assert least <= layer.snr_db <= most
        op = next(op for op in program.body.operations if op.outputs[0].name == layer.name)
        np.testing.assert_allclose(decode(op.inputs["weight"]), independent[layer.name], rtol=1e-6, atol=1e-7)
    (value,) = Evaluator(program)({"x": small_input}).values()
    truth = small_net(torch.from_numpy(small_input)).detach().numpy()
    assert snr_db(truth, value) > min(20.0, least) - 3

    modules = dict(small_net.named_modules())
    twin = type(small_net)()
    for layer, module in zip(report.layers, ("stem", "body", "head"), strict=True):
        weight = getattr(twin, module).weight.data
        weight.copy_(torch.from_numpy(independent[layer.name]))
        getattr(twin, module).bias.data.copy_(modules[module].bias.data)
    assert snr_db(twin.eval()(torch.from_numpy(small_input)).detach().numpy(), value) > 100


def test_float_package_lists_every_layer_with_a_reason(small_program: Any) -> None:
    report = coverage(small_program)
    assert report.compressed == ()
    stem, body, _ = report.left_float
    assert "864 elements" in stem.reason
    assert "3 input channels do not divide" in stem.reason
    assert body.compression == "float32"
    assert body.stored_bytes == 4 * 32 * 64 * 9
    assert len(report.not_quantized()) == 3


def test_half_precision_weights_are_float(
    tmp_path: Path, convert: Any, small_net: Any, small_input: np.ndarray, small_program: Any
) -> None:
    path = convert(small_net, (torch.from_numpy(small_input),), tmp_path / "half.mlpackage", half=True)
    report = coverage(load_package(path), small_program)
    assert {layer.compression for layer in report.layers} == {"float16"}
    assert all(layer.snr_db is not None and layer.snr_db > 65 for layer in report.layers)


def _constant(build: Any) -> np.ndarray:
    """Decode what `build` returns inside a function."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with mil.Function({"x": mb.placeholder(shape=(1,))}, opset_version=ct.target.iOS18) as function:
        result = build()
        function.set_outputs([mb.identity(x=function.inputs["x"])])
    return decode(result)


@settings(max_examples=40, deadline=None)
@given(
    data=hnp.arrays(np.int8, st.sampled_from([(4, 6), (2, 4, 3), (8, 2)])),
    divide=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    shifted=st.booleans(),
)
def test_blockwise_scales(data: np.ndarray, divide: tuple[int, int], shifted: bool) -> None:
    shape = [data.shape[0] // divide[0], data.shape[1] // divide[1], *[1] * (data.ndim - 2)]
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 2, shape).astype(f32)
    offset = rng.integers(-5, 5, shape).astype(np.int8) if shifted else None
    value = _constant(lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale, offset=offset))
    for index in np.ndindex(data.shape):
        block = tuple(i * s // n for i, s, n in zip(index, shape, data.shape, strict=True))
        shift = 0 if offset is None else int(offset[block])
        assert math.isclose(value[index], (int(data[index]) - shift) * scale[block], rel_tol=1e-6, abs_tol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
    vector=st.sampled_from([1, 2]),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_lookup_tables_by_groups_and_vectors(bits: int, vector: int, axis: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 2**bits, (6, 4)).astype(np.uint8)
    lut = rng.standard_normal((3, 1, 2**bits, vector)).astype(f32)
    typed = indices.astype(mil.types.nptype_from_builtin(mil.types.string_to_builtin(f"uint{bits}")))
    value = _constant(lambda: mb.constexpr_lut_to_dense(indices=typed, lut=lut, vector_axis=np.int32(axis)))
    assert value.shape == ((6 * vector, 4) if axis == 0 else (6, 4 * vector))
    for row, column in np.ndindex(6, 4):
        entry = lut[row // 2, 0, indices[row, column]]
        part = (
            value[row * vector : (row + 1) * vector, column]
            if axis == 0
            else value[row, column * vector : (column + 1) * vector]
        )
        np.testing.assert_array_equal(part, entry)


def test_nested_sparse_lookup_with_scale() -> None:
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 2, (4, 6)).astype(mil.types.nptype_from_builtin(mil.types.uint1))
    count = int((mask != 0).sum())
    indices = rng.integers(0, 4, (count,)).astype(mil.types.nptype_from_builtin(mil.types.uint2))
    table = rng.integers(-100, 100, (1, 1, 4, 1)).astype(np.int8)
    scale = rng.uniform(0.1, 1, (4, 1)).astype(f32)

    def build() -> Any:
        wide, nonzero = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=indices, lut=table)
        wide, real = mb.constexpr_sparse_blockwise_shift_scale(data_mask=wide, nonzero_data=nonzero, scale=scale)
        return mb.constexpr_sparse_to_dense(nonzero_data=real, mask=wide)

    expected = np.zeros((4, 6), f32)
    expected[mask != 0] = table.reshape(-1)[indices.astype(int)]
    np.testing.assert_allclose(_constant(build), expected * scale, rtol=1e-6)
