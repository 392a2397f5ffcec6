"""Pruning: budgets are met, what must stay stays, and the result is a file that loads by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgeopt.core.errors import ConversionError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.pruning import PruneOptions, SparsifyOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
IMAGE = (TensorSpec("image", (1, 1, 8, 8), "float32", "NCHW"),)
TOKENS = (TensorSpec("x", (1, 6, 32)),)
TASK = "image-classification"


@pytest.fixture(scope="module")
def stages(parts):
    from types import SimpleNamespace

    if not parts.prunes:
        pytest.skip("needs torch-pruning")
    from edgeopt.stages import prune, prune_shapes, sparsify

    return SimpleNamespace(
        prune=prune.prune, measure=prune.measure, sparsify=sparsify.sparsify, aligned=prune_shapes._aligned
    )


def run(network, *inputs):
    with torch.no_grad():
        return network(*inputs)


def lifted(parts, module, inputs):
    torch.manual_seed(0)
    return parts.network.to_network(parts.network.export(module.eval(), inputs))


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
@pytest.mark.parametrize("scope", ["global", "per-layer"])
def test_a_budget_is_met_by_every_measure(stages, net, train_set, importance, scope):
    options = PruneOptions(macs=0.6, importance=importance, scope=scope, round_to=4, samples=64)
    made = stages.prune(net, IMAGE, options, train_set, TASK)
    counts = stages.measure(made.network, IMAGE)
    assert counts == made.record["after"] and counts["macs"] <= 0.6 * made.record["before"]["macs"]
    assert counts["macs"] > 0.3 * made.record["before"]["macs"], "no more than needed goes"
    assert all(after % 4 == 0 for _, after in made.record["channels"].values())
    assert made.record["left_alone"] == {"head": "gives the model's outputs"}
    assert run(made.network, torch.rand(5, 1, 8, 8)).shape == (5, 10)
    assert made.network.get_submodule("deep.0").groups == made.network.get_submodule("wide.0").out_channels


class Wide(nn.Module):
    """Layers as wide as the steps that channels go in: one step of the search takes several."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x.mean((2, 3)))


def test_no_step_of_channels_goes_that_the_budget_spares(stages, parts):
    net = lifted(parts, Wide(), IMAGE)
    weight = net.get_submodule("blocks.0").weight
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.shape == weight.shape:
            layer.weight.data.copy_(weight.data)  # all groups cross the threshold together
    made = stages.prune(net, IMAGE, PruneOptions(macs=0.7, round_to=8), None, TASK)
    share = made.record["after"]["macs"] / made.record["before"]["macs"]
    assert 0.6 < share <= 0.7, made.record["channels"]
    assert all(after % 8 == 0 for _, after in made.record["channels"].values())


def test_a_channel_costs_what_pruning_it_saves(stages, parts, net):
    from edgeopt.stages.prune_cost import unit_costs
    from edgeopt.stages.prune_groups import Structure

    structure = Structure(net, IMAGE)
    free = [g for g in structure.find(set(), True) if not g.fixed]
    assert len(free) > 1
    before = stages.measure(net, IMAGE)
    for kind in ("macs", "params"):
        told = unit_costs(net, IMAGE, free, kind)
        saved = {}
        for group in free:
            made = structure.pruned({group.name: group.units[0].tolist()})
            saved[group.name] = before[kind] - stages.measure(made, IMAGE)[kind]
        mean = sum(saved.values()) / len(saved)
        for name, cost in told.items():
            assert cost == pytest.approx(saved[name] / mean, rel=0.25), f"{kind} of {name}"


@pytest.mark.parametrize(("budget", "value"), [("params", 0.5), ("size", 0.5), ("params", 900.0)])
def test_other_budgets_as_share_or_count(stages, net, budget, value):
    options = PruneOptions(**{budget: value}, round_to=1, max_ratio=0.95)
    made = stages.prune(net, IMAGE, options, None, TASK)
    most = value * made.record["before"][budget] if value <= 1 else value
    assert made.record["after"][budget] <= most


def test_what_goes_is_worth_least(stages, net):
    """Channels that nothing depends on go first, and the network then answers as before."""
    with torch.no_grad():
        for name in ("wide.0", "wide.1", "deep.0", "deep.1"):
            layer = net.get_submodule(name)
            layer.weight[:16] = 0
            if layer.bias is not None:
                layer.bias[:16] = 0
        net.get_submodule("narrow.0").weight[:, :16] = 0
    made = stages.prune(net, IMAGE, PruneOptions(layers={"wide.0": 0.5}, round_to=8), None, TASK)
    x = torch.rand(3, 1, 8, 8)
    assert list(made.record["channels"].values()) == [[32, 16]]
    torch.testing.assert_close(run(made.network, x), run(net, x))


class Squeeze(nn.Module):
    """Squeeze and excitation, a convolution in groups, a concatenation, group norm, and a flattened classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.reduce, self.grow = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.aside, self.join = nn.Conv2d(1, 8, 1), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, image):
        x = torch.relu(self.first(image))
        x = x * torch.sigmoid(self.grow(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        x = torch.cat([torch.relu(self.norm(self.grouped(x))), self.aside(image)], 1)
        return self.head(torch.nn.functional.max_pool2d(torch.relu(self.join(x)), 2).flatten(1))


def test_squeeze_groups_concatenation_and_flattening(stages, parts):
    net = lifted(parts, Squeeze(), IMAGE)
    made = stages.prune(net, IMAGE, PruneOptions(ratio=0.5, scope="per-layer", round_to=4), None, TASK)
    x = torch.rand(3, 1, 8, 8)
    assert run(made.network, x).shape == (3, 5)
    after = {name: pair[1] for name, pair in made.record["channels"].items()}
    grouped = made.network.get_submodule("grouped")
    assert grouped.groups == 4 and grouped.out_channels == 8 and grouped.in_channels == 8
    assert made.network.get_submodule("norm").num_channels == 8
    assert made.network.get_submodule("aside").out_channels == 4
    assert made.network.get_submodule("reduce").out_channels == 4
    assert made.network.get_submodule("join").in_channels == 12
    assert made.network.get_submodule("head").in_features == 8 * 16 and len(after) >= 4


class Tangled(nn.Module):
    """What is concatenated is flattened at once: channels that the dependency graph does not follow."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3), nn.Conv2d(1, 16, 1)
        self.last, self.head = nn.Conv2d(16, 4, 1), nn.Linear(16 * 36 + 4 * 64, 5)

    def forward(self, image):
        x = torch.cat([self.one(image), self.two(image)], 1).flatten(1)
        return self.head(torch.cat([x, self.last(torch.relu(self.three(image))).flatten(1)], 1))


def test_what_cannot_be_followed_is_left_alone(stages, parts):
    net = lifted(parts, Tangled(), IMAGE)
    made = stages.prune(net, IMAGE, PruneOptions(ratio=0.5, scope="per-layer"), None, TASK)
    assert made.record["channels"] == {"three": [16, 8]}
    assert run(made.network, torch.rand(3, 1, 8, 8)).shape == (3, 5)
    assert any("not followed" in reason for reason in made.record["left_alone"].values())


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.output = (nn.Linear(32, 32) for _ in range(4))
        self.widen, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (f(y).view(*y.shape[:2], 4, 8).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.fused:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v
        x = x + self.output(mixed.transpose(1, 2).reshape(y.shape))
        return x + self.narrow(torch.nn.functional.gelu(self.widen(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, fused=False, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(Block(fused) for _ in range(depth))
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("fused", [False, True], ids=["products", "fused"])
def test_attention_loses_whole_heads(stages, parts, fused):
    net = lifted(parts, Transformer(fused), TOKENS)
    made = stages.prune(net, TOKENS, PruneOptions(ratio=0.5, scope="per-layer"), None, "generic")
    for i in range(2):
        for name in ("query", "key", "value"):
            assert made.network.get_submodule(f"layers.{i}.{name}").out_features == 16, "two heads of eight"
        assert made.network.get_submodule(f"layers.{i}.output").out_features == 32
        assert made.network.get_submodule(f"layers.{i}.widen").out_features == 32
    assert any("LayerNorm" in reason for reason in made.record["left_alone"].values())
    x = torch.rand(3, 6, 32)
    again = parts.network.to_network(parts.network.to_program(made.network, TOKENS))
    torch.testing.assert_close(run(again, x), run(made.network, x))
    kept = stages.prune(net, TOKENS, PruneOptions(ratio=0.5, heads=False), None, "generic")
    assert kept.network.get_submodule("layers.0.query").out_features == 32


def test_heads_that_do_nothing_can_go(stages, parts):
    net = lifted(parts, Transformer(depth=1), TOKENS)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            net.get_submodule(f"layers.0.{name}").weight[8:16] = 0
            net.get_submodule(f"layers.0.{name}").bias[8:16] = 0
        net.get_submodule("layers.0.output").weight[:, 8:16] = 0
    made = stages.prune(net, TOKENS, PruneOptions(layers={"layers.0.key": 0.25}), None, "generic")
    x = torch.rand(3, 6, 32)
    assert made.network.get_submodule("layers.0.value").out_features == 24
    torch.testing.assert_close(run(made.network, x), run(net, x))


def test_the_pruned_file_loads_by_itself_without_pickle(stages, parts, net, tmp_path, monkeypatch):
    from edgeopt.sources import from_program
    from edgeopt.sources.request import understand

    made = stages.prune(net, IMAGE, PruneOptions(macs=0.6, round_to=4), None, TASK)
    path = tmp_path / "small.pt2"
    torch.export.save(parts.network.to_program(made.network, IMAGE), path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    loaded = from_program.load(understand(str(path)))
    assert loaded.inputs[0].shape == (1, 1, 8, 8)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(run(loaded.module, x), run(made.network, x))


def test_what_cannot_be_done_is_told(stages, net, train_set):
    with pytest.raises(ConversionError, match=r"macs cannot fall to 0.010 of .*; raise max_ratio or lower round_to"):
        stages.prune(net, IMAGE, PruneOptions(macs=0.01, max_ratio=0.5), None, TASK)
    with pytest.raises(UsageError, match=r"no layer 'wide.2'; did you mean 'wide"):
        stages.prune(net, IMAGE, PruneOptions(ratio=0.5, keep=("wide.2",)), None, TASK)
    with pytest.raises(UsageError, match="taylor importance is measured on samples"):
        stages.prune(net, IMAGE, PruneOptions(ratio=0.5, importance="taylor"), None, TASK)
    kept = stages.prune(net, IMAGE, PruneOptions(ratio=0.5, round_to=4, keep=("stem.0", "wide.0")), train_set, TASK)
    assert kept.network.get_submodule("wide.0").out_channels == 32
    assert "was asked to stay" in kept.record["left_alone"].values()


def test_zeros_where_weights_are_small(stages, net):
    made, record = stages.sparsify(net, SparsifyOptions(ratio=0.75))
    assert record["zeros"] == pytest.approx(0.75, abs=0.01)
    assert record["deflated_bytes"][1] < 0.6 * record["deflated_bytes"][0]
    assert "runtimes their speed" in record["gain"]
    weight, before = made.get_submodule("wide.0").weight, net.get_submodule("wide.0").weight
    assert before.abs()[weight == 0].max() < before.abs()[weight != 0].min()


def test_two_of_four(stages, net):
    made, record = stages.sparsify(net, SparsifyOptions(pattern="2:4", keep=("head",)))
    groups = made.get_submodule("wide.0").weight.flatten(1).reshape(32, 4, 4)
    assert bool(((groups != 0).sum(-1) == 2).all())
    assert bool((made.get_submodule("head").weight != 0).all())
    assert "no multiple of 4" in record["left_dense"]["stem.0"]
    with pytest.raises(UsageError, match="no layer 'hed'; did you mean 'head'"):
        stages.sparsify(net, SparsifyOptions(ratio=0.5, keep=("hed",)))


def costs(network):
    """A host on which time goes with the square root of the multiply-accumulates."""
    from edgeopt.stages.prune import measure

    return measure(network, IMAGE)["macs"] ** 0.5


@pytest.mark.parametrize("more", [{}, {"macs": 0.3}])
def test_a_budget_of_latency_is_met_by_what_was_timed(stages, net, more):
    calls = []

    def time(network, again):
        calls.append(again)
        return {"ratio": costs(network) / costs(net), "pairs": 9}

    options = PruneOptions(latency=0.8, round_to=4, latency_tries=6, **more)
    made = stages.prune(net, IMAGE, options, None, TASK, time=time)
    told = made.record["latency"]
    assert told["budget"] == 0.8 and told["measured"] <= 0.8 and told["measured"] == told["tried"][-1]["latency"]
    assert len(told["tried"]) == len(calls) <= 7 and calls == [False] * (len(calls) - 1) + [True]
    assert costs(made.network) / costs(net) == pytest.approx(told["measured"])
    if more:
        assert made.record["after"]["macs"] <= 0.3 * made.record["before"]["macs"]
    else:
        misses = [t["ratio"] for t in told["tried"] if t["latency"] > 0.8]
        assert misses and max(misses) < made.record["ratio"], "no more than needed goes"


def test_a_second_look_that_says_otherwise_takes_the_next(stages, net):
    def certain(network, again):
        return {"ratio": costs(network) / costs(net), "pairs": 9}

    first = stages.prune(net, IMAGE, PruneOptions(latency=0.8, round_to=4), None, TASK, time=certain)
    rejected = first.record["latency"]["measured"]

    def doubting(network, again):
        ratio = costs(network) / costs(net)
        return {"ratio": 0.9 if again and ratio == rejected else ratio, "pairs": 9}

    made = stages.prune(net, IMAGE, PruneOptions(latency=0.8, round_to=4), None, TASK, time=doubting)
    assert made.record["latency"]["measured"] < rejected
    assert next(t["latency"] for t in made.record["latency"]["tried"] if t["again"]) == 0.9


def test_a_budget_of_latency_that_cannot_be_met(stages, net):
    with pytest.raises(ConversionError, match=r"latency cannot fall to 0\.1 of the model's on this host in onnx"):
        stages.prune(
            net, IMAGE, PruneOptions(latency=0.1), None, TASK, time=lambda network, again: {"ratio": 0.5, "pairs": 5}
        )


def test_axes_of_views_are_told_apart(stages):
    assert stages.aligned((2, 16, 128), (2, 16, 4, 32)) == [([0], [0]), ([1], [1]), ([2], [2, 3])]
    assert stages.aligned((2, 4, 6, 8), (2, 24, 8)) == [([0], [0]), ([1, 2], [1]), ([3], [2])]
