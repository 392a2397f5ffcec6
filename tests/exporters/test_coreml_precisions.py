"""Every kind of weight that a Core ML package stores: the program's own integers, and the outputs they give."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.exporters.coreml_executorch_weights import Integers, constant, integers_of, layer_weights
from edgeopt.exporters.coreml_palettes import grouped_palette_of, palette_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # coremltools and torchao, about their surroundings
    from edgeopt.exporters.coreml_weights import stored_weights
    from edgeopt.exporters.to_coreml import export
    from edgeopt.mil import Evaluator, load_package
    from edgeopt.mil.constexpr import decode
    from edgeopt.stages.quantize import quantize

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # of coremltools, torch and torchao, about each other

LOOKUP = "constexpr_lut_to_dense"
IDS, MASK, OUT = TensorSpec("ids", (1, 12), "int64"), TensorSpec("mask", (1, 12), "int64"), TensorSpec("y", (1, 5))


class Net(nn.Module):
    """One of each: embedding, linear layers, attention, a grouped and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 64)
        self.norm = nn.LayerNorm(64)
        self.qkv = nn.Linear(64, 192)
        self.wide = nn.Linear(64, 96)
        self.grouped = nn.Conv1d(96, 32, 3, groups=2)
        self.up = nn.ConvTranspose1d(32, 48, 2, stride=2)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids))
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        allowed = mask.new_ones(1, 1, 12, 12, dtype=torch.bool) & mask[:, None, None, :].bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, allowed)
        x = nn.functional.gelu(self.wide(x + mixed.transpose(1, 2).flatten(2))).transpose(1, 2)
        return self.head(torch.relu(self.up(torch.relu(self.grouped(x)))).mean(2))


def on_grid(program: torch.export.ExportedProgram, bits: int) -> torch.export.ExportedProgram:
    """Return a copy whose weights are integers times scales, as the conditioning stages leave them."""
    module = program.module()
    for weight in layer_weights(module):
        dense = weight.kind == "linear" or bits == 8
        integers = integers_of(weight, bits if dense else 8, 32)
        constant(module, weight.node).data.copy_(real(integers))
    return torch.export.export(module, examples())


def real(integers: Integers) -> torch.Tensor:
    scale = integers.scale
    for axis, size in enumerate(integers.values.shape):
        scale = scale.repeat_interleave(size // scale.shape[axis], axis)
    return integers.values * scale


def examples() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 50, (1, 12), generator=generator), torch.tensor([[1] * 9 + [0] * 3])


@dataclass(frozen=True)
class Made:
    export: Export
    path: Path
    program: torch.export.ExportedProgram
    operators: Counter[str]
    snr_db: float


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("coreml")
    programs: dict[str, torch.export.ExportedProgram] = {}
    made: dict[tuple[str, str], Made] = {}

    def program_of(precision: str) -> torch.export.ExportedProgram:
        scheme = scheme_of(precision)
        if not programs:
            programs["float"] = torch.export.export(Net().eval(), examples())
        key = {"float": "float", "palettized": "float"}.get(
            scheme.kind, f"{scheme.kind == 'static'}{scheme.weight_bits}"
        )
        if key not in programs:
            programs[key] = on_grid(torch.export.export(Net().eval(), examples()), scheme.weight_bits)
            if scheme.kind == "static":
                given = dict(zip(("ids", "mask"), (e.numpy() for e in examples()), strict=True))
                programs[key] = quantize(
                    programs[key], lambda: iter([given] * 2), (IDS, MASK), scheme, QuantizationOptions()
                ).program
        return programs[key]

    def run(precision: str, system: str = "iOS17", **options: Any) -> Made:
        key = (precision, system, str(options))
        if key not in made:
            program = program_of(precision)
            source, path = folder / f"{len(made)}.pt2", folder / f"{len(made)}.mlpackage"
            torch.export.save(program, source)
            request = ExportRequest(
                name="net", program=str(source), inputs=(IDS, MASK), outputs=(OUT,), precision=precision,
                out=str(path), coreml_deployment_target=system, quantization=QuantizationOptions(**options),
            )  # fmt: skip
            record = export(request)
            package = load_package(path)
            expected = program.module()(*examples()).detach().numpy()
            inputs = {"ids": examples()[0].int().numpy(), "mask": examples()[1].int().numpy()}
            actual = Evaluator(package, "fp32" if precision == "fp32" else "fp16")(inputs)["y"]
            noise = float(np.square(expected - actual).sum())
            snr = 10 * math.log10(float(np.square(expected).sum()) / noise) if noise else math.inf
            operators = Counter(op.op_type for op in package.body.operations)
            made[key] = Made(record, path, program, operators, snr)
        return made[key]

    return run


class Masked(nn.Module):
    """Attention whose padding, rows and columns, is filled with the lowest float, or gets it added."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 5)
        self.adds = adds
        self.register_buffer("lowest", torch.tensor(torch.finfo(torch.float32).min))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        scores = x @ x.transpose(1, 2)
        allowed = mask[:, None, :].bool() & mask[:, :, None].bool()
        if self.adds:
            scores = scores + (~allowed).to(scores.dtype) * self.lowest
        else:
            scores = scores.masked_fill(~allowed, torch.finfo(torch.float32).min)
        return self.head((scores.softmax(-1) @ x * mask[:, :, None]).sum(1) / 9)


@pytest.mark.parametrize("precision", ["fp16", "dynamic_wi8_afp32"])
@pytest.mark.parametrize("adds", [False, True])
def test_rows_of_padding_are_finite_in_half_precision(tmp_path: Path, precision: str, adds: bool) -> None:
    program = torch.export.export(Masked(adds).eval(), examples())
    torch.export.save(program, tmp_path / "net.pt2")
    request = ExportRequest(
        name="net", program=str(tmp_path / "net.pt2"), inputs=(IDS, MASK), outputs=(OUT,), precision=precision,
        out=str(tmp_path / "net.mlpackage"), coreml_deployment_target="iOS17", quantization=QuantizationOptions(),
    )  # fmt: skip
    export(request)
    inputs = {"ids": examples()[0].int().numpy(), "mask": examples()[1].int().numpy()}
    actual = Evaluator(load_package(tmp_path / "net.mlpackage"), "fp16")(inputs)["y"]
    expected = program.module()(*examples()).detach().numpy()
    assert np.allclose(actual, expected, atol=0.02)


def integers_of_program(program: torch.export.ExportedProgram, bits: int) -> list[Integers]:
    return [integers_of(weight, bits, 32) for weight in layer_weights(program.module())]


@pytest.mark.parametrize(
    ("precision", "system", "bits"),
    [
        ("weight_only_wi8_afp32", "iOS16", 8),
        ("weight_only_wi8_afp32", "iOS18", 8),
        ("dynamic_wi8_afp32", "iOS17", 8),
        ("weight_only_wi4_afp32", "iOS18", 4),
    ],
)
def test_a_package_stores_the_integers_of_the_program(make: Any, precision: str, system: str, bits: int) -> None:
    made = make(precision, system)
    expected = integers_of_program(made.program, bits)
    stored = stored_weights(made.path)
    assert all(e.exact for e in expected)
    assert len(stored) == len(expected) == 6
    for own, wanted in zip(stored, expected, strict=True):
        np.testing.assert_array_equal(own.values, wanted.values.numpy())
        half = wanted.scale.half().float().numpy()
        np.testing.assert_array_equal(own.scale.reshape(-1), half.reshape(-1))
        assert own.values.shape[own.axis] == own.scale.shape[0]
    assert made.snr_db >= 55, "only half precision is lost"
    assert made.export.not_quantized == ()


def test_a_quantized_graph_keeps_its_integers(make: Any) -> None:
    made = make("static_wi8_ai8")
    tensors = {**made.program.state_dict, **made.program.constants}
    expected = sorted(t.numpy().tobytes() for t in tensors.values() if t.dtype == torch.int8)
    assert sorted(w.values.tobytes() for w in stored_weights(made.path)) == expected
    assert len(expected) == 6
    assert made.snr_db >= 30
    assert made.export.integer_ops >= 5 and made.export.float_ops >= 1
    assert any("softmax" in line for line in made.export.not_quantized)


@pytest.mark.parametrize("system", ["iOS17", "iOS18"])
@pytest.mark.parametrize(("precision", "at_least"), [("palettized_w4", 15), ("palettized_w6", 28)])
def test_palettes_replace_every_weight(make: Any, precision: str, at_least: float, system: str) -> None:
    made = make(precision, system)
    assert made.operators[LOOKUP] == 6
    assert made.export.not_quantized == ()
    assert at_least <= made.snr_db < 60
    assert [w.values for w in stored_weights(made.path)] == []


def test_a_grouped_convolution_has_a_palette_of_256(make: Any) -> None:
    looked_up = [op for op in load_package(make("palettized_w4", "iOS18").path).body.operations if op.op_type == LOOKUP]
    entries = sorted(np.asarray(decode(op.inputs["lut"])).shape[-2] for op in looked_up)
    assert entries == [16, 16, 16, 16, 16, 256]


def test_a_scale_stands_behind_the_layer_not_in_the_constant(make: Any) -> None:
    """Systems before iOS 26 do not read a constant that is looked up first and scaled then."""
    assert make("palettized_w4", "iOS18").operators["constexpr_blockwise_shift_scale"] == 0
    plain, scaled = make("palettized_w4", "iOS17").operators["mul"], make("palettized_w4", "iOS18").operators["mul"]
    assert scaled > plain


def test_fewer_bits_make_smaller_packages(make: Any) -> None:
    def size(made: Made) -> int:
        return (made.path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    names = ["fp32", "fp16", "weight_only_wi8_afp32", "palettized_w6", "palettized_w4"]
    sizes = [size(make(name)) for name in names]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert size(make("weight_only_wi4_afp32", "iOS18")) < size(make("weight_only_wi8_afp32", "iOS18"))


@pytest.mark.parametrize("system", ["iOS16", "iOS17"])
def test_four_bit_integers_need_ios18(make: Any, system: str) -> None:
    with pytest.raises(UsageError, match=rf"from iOS18 on; the target asks for {system}: raise .* palettized_w4"):
        make("weight_only_wi4_afp32", system)


def test_what_is_kept_in_float_is_told(make: Any) -> None:
    made = make("weight_only_wi8_afp32", keep_float=("wide", "words"))
    assert len(stored_weights(made.path)) == 4
    assert [line.split()[0] for line in made.export.not_quantized] == ["gather", "linear"]


def test_attention_is_not_taken_apart_for_one_unknown_operator(make: Any) -> None:
    """`new_ones` and `&` have no translation; linear and normalisation layers stay whole all the same."""
    operators = make("fp32").operators
    assert operators["linear"] == 3 and operators["layer_norm"] == 1 and operators["gelu"] == 1
    assert make("fp32").snr_db >= 100


def test_core_ml_has_no_16_bit_activations(make: Any) -> None:
    with pytest.raises(UsageError, match="8 bits only"):
        make("static_wi8_ai16")


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 6]),
    shape=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
    scaled=st.booleans(),
)
def test_a_palette_maps_each_value_to_its_nearest_entry(bits: int, shape: list[int], seed: int, scaled: bool) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    palette = palette_of(value, bits)
    table = palette.table.reshape(-1)
    assert table.shape == (2**bits,) and torch.equal(table, table.sort().values)
    nearest = (value.unsqueeze(-1) - table).abs().amin(-1)
    assert torch.allclose((value - table[palette.indices.long()]).abs(), nearest, atol=1e-6)
    if value.numel() <= 2**bits:
        assert torch.equal(table[palette.indices.long()], value)
    grouped = grouped_palette_of(value, bits, 0, scaled=scaled, group=4)
    assert grouped.table.shape[0] == (shape[0] // 4 if shape[0] % 4 == 0 else 1)
    assert (grouped.scale is not None) == scaled and grouped.indices.max() < 2**bits


def test_scales_and_groups_lower_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(64, 64, generator=generator) * torch.logspace(-2, 0, 64)[:, None]

    def error(palette: Any) -> float:
        tables = palette.table.reshape(palette.table.shape[0], -1)
        rows = torch.arange(64) // (64 // len(tables))
        found = tables[rows[:, None], palette.indices.long()] * (1 if palette.scale is None else palette.scale)
        return float(((value - found) ** 2).sum() / (value**2).sum())

    plain = error(palette_of(value, 4))
    grouped = error(grouped_palette_of(value, 4, 0, scaled=False))
    both = error(grouped_palette_of(value, 4, 0, scaled=True))
    assert both < plain and grouped < plain
    assert plain < 0.03
