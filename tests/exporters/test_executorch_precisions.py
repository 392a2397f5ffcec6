"""ExecuTorch programs store the program's own integers, and run them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.artifact import Export, ExportRequest
from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of
from edgeopt.exporters.coreml_executorch_weights import constant, integers_of, layer_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # executorch and torchao, about their surroundings
    from edgeopt.exporters.executorch_payload import payloads, read_program
    from edgeopt.exporters.executorch_weights import stored_weights
    from edgeopt.exporters.to_executorch import export
    from edgeopt.runtimes.run_executorch import load
    from edgeopt.stages.half_scales import nearest
from edgeopt.stages.quantize import quantize

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # of executorch, torch and torchao, about each other


class Text(nn.Module):
    """Embeddings, one of them read twice, and attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(50, 64), nn.Embedding(3, 64)
        self.norm = nn.LayerNorm(64)
        self.qkv = nn.Linear(64, 192)
        self.head = nn.Linear(64, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.words(x) + self.kinds(x % 3) + self.words(x.flip(1)))
        h = h * (x > 1).float()[:, :, None] + torch.full((1, 12, 1), 0.5) + torch.tensor([[[0.25]]])
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        return self.head(h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Padded(nn.Module):
    """Pads of every kind in front of convolutions: even, uneven, with another number, and read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3)
        self.third, self.fourth = nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 4, 3)
        self.fifth, self.sixth = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = nn.functional.pad
        x = self.second(pad(torch.relu(self.first(x)), (2, 2, 1, 1)))
        x = self.third(pad(x, (0, 1, 0, 1)))
        wide = pad(x, (1, 1, 1, 1))
        return (
            self.fourth(wide) + self.fifth(wide)[:, :, 1:-1, 1:-1] + self.sixth(pad(x, (1, 1, 1, 1)))[:, :, 1:-1, 1:-1]
        )


class Image(nn.Module):
    """A strided convolution, a depthwise one, a 1×1 one, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.depth(nn.functional.relu6(self.stem(x))))
        return self.head(nn.functional.relu6(self.point(x)).mean((2, 3)))


class Strided(nn.Module):
    """A residual block that halves the picture: 1×1 convolutions with and without a stride."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.deep = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, 2, 1, groups=3)
        self.narrow, self.shortcut = nn.Conv2d(24, 32, 1), nn.Conv2d(3, 32, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.relu(self.deep(torch.relu(self.wide(x))))) + self.shortcut(x)


class Masked(nn.Module):
    """A mask of the lowest float, and scores that are far below the smallest normal half, as a detector's are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.where(x[:, :, :1].transpose(1, 2) > -1, torch.zeros(()), torch.finfo(torch.float32).min)
        attention = torch.softmax(self.inner(x) @ x.transpose(1, 2) + mask, -1)
        return torch.sigmoid((attention @ x) - 11)


NETS = {
    "masked": (Masked, TensorSpec("x", (1, 12, 16)), lambda g: torch.randn(1, 12, 16, generator=g)),
    "text": (Text, TensorSpec("x", (1, 12), "int64"), lambda g: torch.randint(0, 50, (1, 12), generator=g)),
    "padded": (Padded, TensorSpec("x", (1, 3, 16, 16)), lambda g: torch.randn(1, 3, 16, 16, generator=g)),
    "strided": (Strided, TensorSpec("x", (1, 3, 16, 16)), lambda g: torch.randn(1, 3, 16, 16, generator=g)),
    "image": (Image, TensorSpec("x", (1, 3, 16, 16)), lambda g: torch.randn(1, 3, 16, 16, generator=g)),
}
PRECISIONS = ["static_wi8_ai8", "dynamic_wi8_afp32", "weight_only_wi8_afp32"]


@dataclass(frozen=True)
class Made:
    export: Export
    path: Path
    program: torch.export.ExportedProgram
    snr_db: float


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("executorch")
    made: dict[tuple[str, str, str], Made] = {}

    def run(name: str, precision: str, **options: Any) -> Made:
        key = (name, precision, str(options))
        if key in made:
            return made[key]
        scheme = scheme_of(precision)
        net, spec, sample = NETS[name]
        generator = torch.Generator().manual_seed(1)
        samples = [sample(generator) for _ in range(4)]
        program = torch.export.export(net().eval(), (samples[0],))
        if scheme.kind != "float":
            module = program.module()
            for weight in layer_weights(module):
                grid = integers_of(weight, 8)
                constant(module, weight.node).data.copy_(grid.values * grid.scale)
            program = torch.export.export(module, (samples[0],))
        if scheme.kind == "static":
            batches = [{"x": s.numpy()} for s in samples]
            program = quantize(program, lambda: iter(batches), (spec,), scheme, QuantizationOptions()).program
        source, path = folder / f"{len(made)}.pt2", folder / f"{len(made)}.pte"
        torch.export.save(program, source)
        expected = program.module()(samples[1]).detach().numpy()
        outputs = (TensorSpec("y", expected.shape),)
        request = ExportRequest(
            name=name, program=str(source), inputs=(spec,), outputs=outputs, precision=precision, out=str(path),
            quantization=QuantizationOptions(**options),
        )  # fmt: skip
        record = export(request)
        actual = load(path, {})({"input_0": samples[1].numpy()})["output_0"]
        noise = float(np.square(expected - actual).sum())
        snr = 10 * math.log10(float(np.square(expected).sum()) / noise) if noise else math.inf
        made[key] = Made(record, path, program, snr)
        return made[key]

    return run


def contents(values: np.ndarray) -> tuple[int, ...]:
    """Integers whatever their order in memory: XNNPACK has channels last."""
    return tuple(sorted(values.reshape(-1).tolist()))


@pytest.mark.parametrize(
    ("name", "precision", "stored"),
    [
        ("text", "static_wi8_ai8", 4),
        ("text", "dynamic_wi8_afp32", 4),
        ("text", "weight_only_wi8_afp32", 4),
        ("image", "static_wi8_ai8", 4),
        ("image", "dynamic_wi8_afp32", 2),
        ("image", "weight_only_wi8_afp32", 1),
    ],
)
def test_a_program_stores_the_integers_and_scales_it_came_with(
    make: Any, name: str, precision: str, stored: int
) -> None:
    made = make(name, precision)
    net, _, _ = NETS[name]
    plain = torch.export.export(net().eval(), (NETS[name][2](torch.Generator()),))
    expected = {}
    for weight in layer_weights(plain.module()):
        grid = integers_of(weight, 8)
        moved = grid.values.movedim(1, -1) if grid.values.ndim == 4 else grid.values
        if weight.name == "depth":
            moved = grid.values.squeeze(1).movedim(0, -1).unsqueeze(0)
        expected[moved.contiguous().numpy().tobytes()] = grid.scale.reshape(-1).detach().numpy()
    found = stored_weights(made.path)
    assert len(found) == stored
    for own in found:
        wanted = expected[own.values.tobytes()]
        if precision == "static_wi8_ai8":
            wanted = nearest(torch.from_numpy(wanted)).numpy()
        np.testing.assert_allclose(own.scale, wanted, rtol=3e-7)
        assert own.values.shape[own.axis] == len(own.scale)


def test_scales_of_an_artifact_are_the_programs_bit_for_bit(make: Any) -> None:
    for precision in ("dynamic_wi8_afp32", "weight_only_wi8_afp32"):
        made = make("text", precision)
        expected = {
            g.values.numpy().tobytes(): g.scale.reshape(-1).detach().numpy()
            for g in (integers_of(w, 8) for w in layer_weights(made.program.module()))
        }
        for own in stored_weights(made.path):
            np.testing.assert_array_equal(own.scale, expected[own.values.tobytes()])


@pytest.mark.parametrize("name", ["text", "image"])
@pytest.mark.parametrize(
    ("precision", "at_least"),
    [("static_wi8_ai8", 30), ("dynamic_wi8_afp32", 30), ("weight_only_wi8_afp32", 100), ("fp16", 40)],
)
def test_an_artifact_computes_what_the_program_does(make: Any, name: str, precision: str, at_least: float) -> None:
    assert make(name, precision).snr_db >= at_least


def test_half_precision_keeps_masks_finite_and_small_scores(make: Any) -> None:
    assert make("masked", "fp16").snr_db >= 40


def test_dynamic_integers_and_a_stride(make: Any) -> None:
    made = make("strided", "dynamic_wi8_afp32")
    assert made.snr_db >= 25 and made.export.integer_ops == 2 and len(made.export.not_quantized) == 2


def test_convolutions_that_the_runtime_fails_on_stay_in_float(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.exporters import to_executorch

    def fails(*_: object) -> None:
        raise RuntimeError("method->execute() failed with error 0x1")

    monkeypatch.setattr(to_executorch, "run_once", fails)
    made = make("image", "dynamic_wi8_afp32", keep_float=("stem",))  # an option of its own, so that it is made anew
    assert made.snr_db >= 25 and len(made.export.not_quantized) == 3
    assert any("1×1 convolutions stay in float" in note and "0x1" in note for note in made.export.notes)


def test_what_runs_on_integers_is_counted(make: Any) -> None:
    static, dynamic, weight_only, real = (make("image", p).export for p in [*PRECISIONS, "fp32"])
    assert static.integer_ops >= 4 and static.not_quantized == ()
    assert dynamic.integer_ops == 2 and len(dynamic.not_quantized) == 2
    assert weight_only.integer_ops == 0 and weight_only.float_ops >= 4 and len(weight_only.not_quantized) == 3
    assert real.integer_ops is None and real.float_ops is None


def test_pads_before_quantized_convolutions_are_integers_or_gone(make: Any) -> None:
    made = make("padded", "static_wi8_ai8")
    found = payloads(read_program(made.path))
    pads = [p.is_integer(fields) for p in found for kind, fields in p.nodes if kind == "XNNStaticConstantPad"]
    assert made.snr_db >= 30
    assert pads == [True], "the uneven one"
    assert made.export.float_ops == 0


def test_weight_only_layers_are_delegated_with_their_integers(make: Any) -> None:
    found = payloads(read_program(make("image", "weight_only_wi8_afp32").path))
    (kinds,) = [
        [payload.dtype(fields[k]) for k in ("input1_id", "filter_id", "output_id")]
        for payload in found
        for kind, fields in payload.nodes
        if kind == "XNNFullyConnected"
    ]
    assert kinds == ["fp32", "qcint8", "fp32"]


def test_layers_kept_in_float_stay_so(make: Any) -> None:
    made = make("text", "dynamic_wi8_afp32", keep_float=("qkv", "words"))
    assert len(stored_weights(made.path)) == 2
    assert made.export.integer_ops == 1


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("weight_only_wi4_afp32", "dynamically quantized activations only"),
        ("static_wi8_ai16", "8 bits only"),
        ("palettized_w4", "indices into a table"),
    ],
)
def test_what_xnnpack_cannot_do_is_refused(tmp_path: Path, precision: str, why: str) -> None:
    spec = TensorSpec("x", (1, 4))
    source = tmp_path / "p.pt2"
    torch.export.save(torch.export.export(nn.Sequential(nn.Linear(4, 4)), (torch.rand(1, 4),)), source)
    request = ExportRequest(
        name="n", program=str(source), inputs=(spec,), outputs=(spec,), precision=precision, out=str(tmp_path / "o.pte")
    )
    with pytest.raises(UsageError, match=why):
        export(request)
    assert not (tmp_path / "o.pte").exists()
