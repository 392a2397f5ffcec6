"""Where the int8 graph is quantized, and that what PyTorch simulates is near the float model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, scheme_of

torch.set_num_threads(1)
Q = "quantize_per_tensor"
DQ = "dequantize_per_tensor"


@pytest.fixture(scope="module")
def stages():
    """The modules under test; importing torchao warns about its surroundings."""
    import warnings
    from types import SimpleNamespace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgeopt.stages import quantize, quantizer

    return SimpleNamespace(quantize=quantize, quantizer=quantizer)


@pytest.fixture(scope="module")
def quantize(stages):
    """Quantize a module calibrated on noise; returns the program and an input."""

    def run(module, *shape, batches=8, precision="static_wi8_ai8", keep_float=(), ranges=False, scale=1.0):
        specs = (TensorSpec("x", shape),)
        generator = np.random.default_rng(0)
        data = [{"x": scale * generator.standard_normal(shape).astype(np.float32)} for _ in range(batches)]
        program = torch.export.export(module.eval(), (torch.rand(shape),))
        options = QuantizationOptions(estimator="minmax", keep_float=keep_float)
        made = stages.quantize.quantize(program, lambda: iter(data), specs, scheme_of(precision), options)
        x = torch.from_numpy(data[0]["x"])
        return (made.program, x, made.ranges) if ranges else (made.program, x)

    return run


def kind(node):
    return f".{node.target}.".split(".")[-3] if node.op == "call_function" else node.op


def feeding(program, name):
    """Return, for every call of an operator, the kinds of what it reads."""
    return [[kind(a) for a in n.args if isinstance(a, torch.fx.Node)] for n in program.graph.nodes if kind(n) == name]


def snr(reference, actual):
    return 10 * torch.log10(reference.square().sum() / (reference - actual).square().sum()).item()


class Block(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 1)
        self.act = act or nn.ReLU6()

    def forward(self, x):
        return self.second(self.act(self.conv(x)))


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.ReLU(), nn.Hardtanh(-1, 1)], ids=lambda a: type(a).__name__)
def test_a_convolution_and_its_clamp_are_one_unit(quantize, act):
    program, x = quantize(Block(act), 1, 3, 8, 8)
    clamps = [n for n in program.graph.nodes if kind(n) in ("relu", "relu6", "hardtanh", "clamp")]
    assert clamps and all(kind(n.args[0]) == "conv2d" for n in clamps), "nothing is observed between them"
    assert all(kind(user) == Q for n in clamps for user in n.users)
    assert snr(Block(act).eval()(x), program.module()(x)) > 25


def test_weights_are_symmetric_per_channel_within_127(quantize):
    program, _ = quantize(Block(), 1, 3, 8, 8)
    weights = [
        (name, value)
        for name, value in {**program.state_dict, **program.constants}.items()
        if isinstance(value, torch.Tensor) and value.dtype == torch.int8
    ]
    assert len(weights) == 2
    for _, weight in weights:
        assert weight.min() >= -127
        assert torch.equal(weight.abs().amax((1, 2, 3)), torch.full((8,), 127, dtype=torch.int8))
    assert feeding(program, "conv2d")[0][1] == "dequantize_per_channel"


def test_inputs_and_outputs_stay_float(quantize):
    program, x = quantize(Block(), 2, 3, 8, 8)
    assert program.module()(x).dtype == torch.float32
    assert program.graph_signature.user_inputs == torch.export.export(Block(), (x,)).graph_signature.user_inputs


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.a(x) * 3, self.b(x)], 1)
        x = nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 2)
        return self.head(x.mean((2, 3)).flatten(1))


def scales_around(program, name):
    found = []
    for node in program.graph.nodes:
        if kind(node) == name:
            before = [
                a for a in torch.fx.node.map_arg(node.args, lambda n: n) and node.all_input_nodes if kind(a) == DQ
            ]
            after = [u for u in node.users if kind(u) == Q]
            found.append(({n.args[1:3] for n in before}, {n.args[1:3] for n in after}))
    return found


@pytest.mark.parametrize("name", ["cat", "pad", "max_pool2d"])
def test_what_moves_values_keeps_their_scale(quantize, name):
    program, _ = quantize(Shared(), 1, 3, 8, 8)
    (around,) = scales_around(program, name)
    before, after = around
    assert len(before) == 1 and before == after


def test_residual_sums_are_quantized_on_both_sides(quantize):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.relu(self.conv(x) + x)

    program, _ = quantize(Residual(), 1, 3, 8, 8)
    assert feeding(program, "add") == [[DQ, DQ]]


def test_softmax_and_normalisation_stay_in_float(quantize):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(torch.softmax(self.fc(x), -1))

    program, _ = quantize(Attention(), 1, 4, 8)
    for node in program.graph.nodes:
        if kind(node) in ("softmax", "layer_norm"):
            assert all(kind(user) != Q for user in node.users)
    assert feeding(program, "linear")[0][0] == DQ


def test_transposed_and_grouped_convolutions(quantize):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
            self.grouped = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
            self.dw = nn.Conv2d(4, 4, 3, groups=4)

        def forward(self, x):
            return self.dw(self.grouped(self.up(x)))

    program, x = quantize(Up(), 1, 4, 6, 6)
    torch.manual_seed(0)
    assert snr(Up().eval()(x), program.module()(x)) > 20
    assert feeding(program, "conv2d")[0][:2] == [DQ, "dequantize_per_channel"]
    assert ["dequantize_per_channel" in reads for reads in feeding(program, "conv_transpose2d")] == [True, False]


def test_the_range_covers_what_was_seen_in_any_batch(quantize):
    """Calibration keeps no moving average: one loud batch among quiet ones counts."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return self.conv(x)

    program, _ = quantize(Scale(), 1, 1, 32, 32, batches=12)
    loud = torch.full((1, 1, 32, 32), 3.0)
    assert (program.module()(loud) - loud).abs().max() < 0.3


def calls(program, name):
    return [n for n in program.graph.nodes if kind(n) == name]


def scale_of(quantized):
    return quantized.args[1]


@pytest.mark.parametrize(
    "act", [nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.Hardsigmoid()], ids=lambda a: type(a).__name__
)
def test_what_saturates_reads_integers_that_end_where_it_does(quantize, act):
    """-60 and -3 are the same to a hard-swish: no integer is spent between them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.act, self.b = nn.Conv2d(3, 8, 1), act, nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    program, x, ranges = quantize(Net(), 1, 3, 8, 8, ranges=True, scale=40.0)
    low, high = ranges["conv2d"]
    assert low >= -13
    assert (high > 20) == (not isinstance(act, nn.Hardsigmoid))
    assert [len(reads) for reads in feeding(program, "conv2d")] == [3, 3]
    assert all(reads[:2] == [DQ, "dequantize_per_channel"] for reads in feeding(program, "conv2d"))
    assert snr(Net().eval()(x), program.module()(x)) > 25


def test_hard_swish_spelt_out_is_recognized(quantize):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x * nn.functional.relu6(x + 3) / 6)

    program, x, ranges = quantize(Net(), 1, 3, 8, 8, ranges=True, scale=40.0)
    assert ranges["conv2d"][0] >= -3.2
    assert feeding(program, "conv2d")[1][0] == DQ
    assert snr(Net().eval()(x), program.module()(x)) > 25


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        gate = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(gate))))


def test_a_squeeze_and_excite_block_runs_on_integers_throughout(quantize):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.gate, self.b = nn.Conv2d(3, 8, 1), Gate(), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.b(self.gate(self.a(x)))

    program, x = quantize(Net(), 1, 3, 8, 8)
    assert feeding(program, "mul") == [[DQ, DQ]]
    assert all(reads[:2] == [DQ, "dequantize_per_channel"] for reads in feeding(program, "conv2d"))
    (mean,) = calls(program, "mean")
    (pooled,) = mean.users
    assert scale_of(pooled) < 0.7 * mean.args[0].args[1], "a mean is smaller than what it is of"
    assert snr(Net().eval()(x), program.module()(x)) > 25


def test_parts_of_a_split_keep_its_scale(quantize):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            left, right = self.a(x).chunk(2, 1)
            return self.c(torch.cat([self.b(left), right], 1))

    program, _ = quantize(Net(), 1, 3, 8, 8)
    first, second, *_ = calls(program, "conv2d")
    (whole,) = first.users
    read = second.args[0].args
    assert read[1] == scale_of(whole)
    assert len({n.args[1:3] for (reads) in calls(program, "cat") for n in reads.args[0]}) == 1


class Masked(nn.Module):
    """One attention head with an additive mask, as BERT's."""

    def __init__(self, fill, additive=True):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.fill, self.additive = fill, additive

    def forward(self, ids, mask):
        x = self.table(ids)
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        if self.additive:
            scores = scores + (1.0 - mask[:, None, :].float()) * self.fill
        else:
            scores = scores.masked_fill(mask[:, None, :] == 0, self.fill)
        return self.out(torch.softmax(scores, -1) @ self.v(x))


@pytest.mark.parametrize("fill", [-1e4, float(torch.finfo(torch.float32).min)])
@pytest.mark.parametrize("additive", [True, False])
def test_attention_masks_enter_no_range(stages, fill, additive):
    module = Masked(fill, additive).eval()
    ids = np.arange(12, dtype=np.int64)[None]
    mask = (np.arange(12) < 9).astype(np.int64)[None]
    specs = (TensorSpec("ids", (1, 12), "int64"), TensorSpec("mask", (1, 12), "int64"))
    examples = (torch.from_numpy(ids), torch.from_numpy(mask))
    program = torch.export.export(module, examples)
    made = stages.quantize.quantize(
        program,
        lambda: iter([{"ids": ids, "mask": mask}] * 3),
        specs,
        scheme_of("static_wi8_ai8"),
        QuantizationOptions(),
    )
    assert "matmul" in made.ranges
    assert all(-50 < low <= 0 <= high < 50 for low, high in made.ranges.values())
    assert snr(module(*examples), made.program.module()(*examples)) > 25
    assert feeding(made.program, "matmul") == [[DQ, DQ]] * 2
    assert feeding(made.program, "embedding") == [["dequantize_per_channel", "placeholder"]]


def test_a_residual_sum_before_a_normalisation_stays_float(quantize):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x):
            return self.b(self.norm(self.a(x) + x))

    program, _ = quantize(Net(), 1, 4, 8)
    (total,) = calls(program, "add")
    assert [kind(user) for user in total.users] == ["layer_norm"]


def test_kept_layers_stay_float_with_their_clamp(quantize):
    program, _ = quantize(Block(), 1, 3, 8, 8, keep_float=("conv",))
    first, second = feeding(program, "conv2d")
    assert first[:1] == ["placeholder"] and "dequantize_per_channel" not in first
    assert second[:2] == [DQ, "dequantize_per_channel"]
    (clamp,) = calls(program, "relu6") or calls(program, "hardtanh") or calls(program, "clamp")
    assert kind(clamp.args[0]) == "conv2d"


def test_every_unit_can_be_kept_alone_and_all_together(stages, quantize):
    module = torch.export.export(Shared().eval(), (torch.rand(1, 3, 8, 8),)).module()
    units = stages.quantizer.units_of(module)
    assert [u.kind for u in units] == ["convolution", "convolution", "concatenation", "pooling", "linear"]
    nodes = [n for u in units for n in u.nodes]
    assert len(nodes) == len(set(nodes))
    specs, batch = (TensorSpec("x", (1, 3, 8, 8)),), {"x": np.ones((1, 3, 8, 8), np.float32)}

    def ranges(keep_float):
        again = torch.export.export(Shared().eval(), (torch.rand(1, 3, 8, 8),)).module()
        quantizer = stages.quantizer.EdgeQuantizer(keep_float=keep_float)
        prepared = stages.quantize.calibrate(again, quantizer, lambda: iter([batch]), specs)
        return set(stages.quantize.ranges_of(prepared))

    whole = ranges(())
    for unit in units:
        assert ranges((unit.name,)) < whole or unit.kind in ("pooling", "concatenation"), unit
        assert ranges((unit.name,)) == ranges((unit.nodes[-1].name,)), "a node's name serves as well"
    assert ranges([u.name for u in units]) == set()


def test_costs_count_multiplications(stages):
    module = torch.export.export(Block().eval(), (torch.rand(2, 3, 8, 8),)).module()
    first, second = stages.quantizer.units_of(module)
    assert (first.cost, second.cost) == (2 * 8 * 6 * 6 * 3 * 9, 2 * 8 * 6 * 6 * 8)
    assert (first.name, second.name) == ("conv", "second")


def test_sixteen_bit_activations_are_symmetric_and_nearer(quantize):
    program, x = quantize(Block(), 1, 3, 8, 8, precision="static_wi8_ai16")
    zero_points = {n.args[2] for n in calls(program, Q)}
    assert zero_points == {0}
    assert {n.args[5] for n in calls(program, Q)} == {torch.int16}
    narrow, _ = quantize(Block(), 1, 3, 8, 8)
    wanted = Block().eval()(x)
    assert snr(wanted, program.module()(x)) > snr(wanted, narrow.module()(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_convolutions_of_a_mobilenet_v3_are_quantized(quantize):
    from edgeopt.sources.torchvision_ops import import_torchvision

    import_torchvision()
    import timm

    torch.manual_seed(0)
    net = timm.create_model("mobilenetv3_small_100", pretrained=False, exportable=True).eval()
    program, x = quantize(net, 1, 3, 32, 32, batches=2)
    reads = feeding(program, "conv2d")
    assert len(reads) == 53
    assert all(r[:2] == [DQ, "dequantize_per_channel"] for r in reads)
    assert torch.isfinite(program.module()(x)).all()


@pytest.mark.parametrize("estimator", ["mse", "minmax"])
def test_class_scores_reach_beyond_what_was_seen_and_maps_of_them_do_not(stages, estimator):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = [{"x": np.random.default_rng(i).standard_normal((1, 2, 8, 8)).astype(np.float32) * i} for i in range(1, 30)]
    program = torch.export.export(module.eval(), (torch.rand(1, 2, 8, 8),))
    options = QuantizationOptions(estimator=estimator)
    specs = (TensorSpec("x", (1, 2, 8, 8)),)
    made = stages.quantize.quantize(program, lambda: iter(data), specs, scheme_of("static_wi8_ai8"), options)

    def ends(run):
        found = np.array([[float(v.min()), float(v.max())] for v in (run(torch.from_numpy(d["x"])) for d in data)])
        return found, found.mean(0) + 3 * found.std(0) * [-1, 1]

    with torch.no_grad():
        pooled, beyond = ends(module[:3])
        assert beyond[1] > 1.2 * pooled.max(), "the samples do not tell both apart"
        slack = made.ranges["adaptive_avg_pool2d"][1] / (beyond[1] if estimator == "mse" else pooled.max())
        assert slack == pytest.approx(1, abs=0.02)
        scores, beyond = ends(module)
        low, high = beyond if estimator == "mse" else (scores.min(), scores.max())
        assert made.ranges["linear"] == pytest.approx((min(low, 0), max(high, 0)), abs=0.02 * (high - low))
        seen, _ = ends(module[:2])
        assert made.ranges["relu"][1] <= 1.01 * seen.max()


def test_masked_scores_do_not_widen_the_range(stages):
    from edgeopt.stages.observers import RangeObserver

    kind = {"dtype": torch.int8, "qscheme": torch.per_tensor_affine, "quant_min": -128, "quant_max": 127}
    observer = RangeObserver(**kind, headroom=3.0)
    for bad in (float("-inf"), float("nan"), float(np.finfo(np.float32).min)):
        observer(torch.tensor([[bad, -1.0, 2.0]]))
    observer(torch.zeros(0, 3))
    assert observer.covered() == pytest.approx((-1, 2), abs=0.02)
