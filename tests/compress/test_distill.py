"""Distillation in its three ways, fine-tuning, and students cut from their teacher's own blocks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.errors import UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.pruning import PruneOptions, SparsifyOptions
from edgeopt.core.training import CutDepthOptions, DistillOptions, FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
IMAGE = (TensorSpec("image", (1, 1, 8, 8), "float32", "NCHW"),)
TOKENS = (TensorSpec("x", (1, 6, 16)),)
TASK = "image-classification"


@pytest.fixture(scope="module")
def stages(parts):
    from types import SimpleNamespace

    if not parts.prunes:
        pytest.skip("needs torch-pruning")
    from edgeopt.stages import cut_depth, distill, finetune, prune, sparsify

    return SimpleNamespace(
        distillation=distill.distillation,
        finetuning=finetune.finetuning,
        prune=prune.prune,
        sparsify=sparsify.sparsify,
        cut_depth=cut_depth.cut_depth,
    )


@pytest.fixture(scope="module")
def teacher(parts, train_set, make_net):
    """Trained on the patterns."""
    network = make_net()
    settings = FinetuneOptions(steps=150, batch_size=50, learning_rate=5e-3)
    parts.loop.fit(parts.objectives.Labels(network, 0.0), train_set, settings)
    return network


@pytest.fixture(scope="module")
def student(stages, teacher):
    options = PruneOptions(macs=0.5, round_to=4)
    return stages.prune(teacher, IMAGE, options, None, TASK).network


def near(a, b, test_set):
    """Mean squared distance of two networks' answers."""
    with torch.no_grad():
        x, _ = test_set.batch(np.arange(len(test_set)))
        return float((a(*x) - b(*x)).square().mean())


@pytest.mark.parametrize(
    "changes",
    [{}, {"label_share": 0.0, "feature_weight": 1.0}, {"feature_weight": 0.5, "features": ["stem.1", "narrow.1"]}],
    ids=["answers", "features", "named"],
)
def test_a_pruned_student_comes_near_its_teacher(parts, stages, teacher, student, train_set, test_set, score, changes):
    learner = copy.deepcopy(student)
    before, lost = near(learner, teacher, test_set), score(learner)
    options = DistillOptions(steps=80, batch_size=50, learning_rate=5e-3, **changes)
    objective = stages.distillation(learner, teacher, train_set, options, TASK)
    weights = copy.deepcopy(teacher.state_dict())
    parts.loop.fit(objective, train_set, options)
    objective.release()
    assert near(learner, teacher, test_set) < 0.5 * before
    assert score(learner) > max(lost, score(teacher) - 0.1)
    assert all(torch.equal(weights[k], v) for k, v in teacher.state_dict().items()), "the teacher does not change"
    assert parts.network.to_program(learner, IMAGE) is not None


def test_fine_tuning_recovers_what_pruning_broke(parts, stages, student, train_set, score):
    learner = copy.deepcopy(student)
    options = FinetuneOptions(steps=80, batch_size=50, learning_rate=5e-3)
    parts.loop.fit(stages.finetuning(learner, train_set, options, TASK), train_set, options)
    assert score(learner) > score(student)


def test_zeros_stay_zero(parts, stages, teacher, train_set):
    sparse, _ = stages.sparsify(teacher, SparsifyOptions(pattern="2:4"))
    before = {n: p.detach() == 0 for n, p in sparse.named_parameters() if p.ndim > 1}
    options = FinetuneOptions(steps=10, batch_size=50, keep_zeros=True)
    parts.loop.fit(stages.finetuning(sparse, train_set, options, TASK), train_set, options)
    assert all(bool((p[before[n]] == 0).all()) for n, p in sparse.named_parameters() if n in before)
    assert any(bool(zero.any()) for zero in before.values())


def test_what_does_not_fit_is_told(parts, stages, teacher, student, train_set):
    unlabelled = parts.examples.Examples(train_set.arrays, np.full(len(train_set), -1))
    with pytest.raises(UsageError, match="finetune learns from labels"):
        stages.finetuning(student, unlabelled, FinetuneOptions(), TASK)
    with pytest.raises(UsageError, match="finetune learns from classes"):
        stages.finetuning(student, train_set, FinetuneOptions(), "sentence-embedding")
    with pytest.raises(UsageError, match=r"share no layer 'stem.5'; did you mean 'stem"):
        stages.distillation(
            copy.deepcopy(student), teacher, train_set, DistillOptions(feature_weight=1, features=("stem.5",)), TASK
        )
    with pytest.raises(UsageError, match="the student has no attention"):
        stages.distillation(copy.deepcopy(student), teacher, train_set, DistillOptions(relation_weight=1), TASK)


class Block(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(16, 16) for _ in range(4))
        self.norm = nn.LayerNorm(16)
        nn.init.constant_(self.output.bias, float(number))

    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], 4, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return self.norm(x + self.output(mixed.transpose(1, 2).reshape(x.shape)))


class Transformer(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        self.layers = nn.ModuleList(Block(n) for n in numbers)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@pytest.fixture
def deep(parts):
    torch.manual_seed(0)
    module = Transformer(range(4)).eval()
    return module, parts.network.to_network(parts.network.export(module, TOKENS))


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"blocks": 2}, [0, 3]), ({"blocks": 3}, [0, 2, 3]), ({"keep": [1, 2]}, [1, 2]), ({"blocks": 1}, [0])],
)
def test_a_student_of_the_teachers_own_blocks(stages, deep, options, kept):
    module, network = deep
    made, record = stages.cut_depth(network, CutDepthOptions(**options))
    assert record["kept"] == [f"layers.{n}" for n in kept] and record["blocks"] == [4, len(kept)]
    module.layers = nn.ModuleList(module.layers[n] for n in kept)
    x = torch.rand(3, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(made(x), module(x))
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in module.parameters())


def test_blocks_that_are_not_there(stages, deep, net):
    with pytest.raises(UsageError, match="5 blocks of 4"):
        stages.cut_depth(deep[1], CutDepthOptions(blocks=5))
    with pytest.raises(UsageError, match="no stack of blocks"):
        stages.cut_depth(net, CutDepthOptions(blocks=1))


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, outputs // inputs, 1), nn.Conv2d(outputs, outputs, 1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def test_named_blocks_are_left_out(parts, stages):
    torch.manual_seed(0)
    blocks = [Residual(4, 4), Residual(4, 4), Residual(4, 8), Residual(8, 8)]
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *blocks).eval()
    program = torch.export.export(module, (torch.rand(2, 1, 9, 9),), dynamic_shapes=({0: torch.export.Dim("n")},))
    network = parts.network.to_network(program)
    made, record = stages.cut_depth(network, CutDepthOptions(drop=("2", "5")))
    assert record == {"dropped": ["2", "5"]}
    x = torch.rand(3, 1, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(made(x), nn.Sequential(*(m for i, m in enumerate(module) if i not in (2, 5)))(x))
    assert not any(name.split(".")[0] in ("2", "5") for name, _ in made.named_parameters())
    with pytest.raises(UsageError, match="4 takes 0 values of its result's shape"):
        stages.cut_depth(network, CutDepthOptions(drop=("4",)))
    with pytest.raises(UsageError, match="no block '9'"):
        stages.cut_depth(network, CutDepthOptions(drop=("9",)))


def test_relations_of_tokens_are_learned(parts, stages, deep):
    """A student with fewer heads and blocks learns how its teacher relates tokens."""
    teacher = deep[1]
    draw = np.random.default_rng(0)
    samples = parts.examples.Examples((draw.standard_normal((200, 6, 16)).astype(np.float32),), np.full(200, -1))
    student, _ = stages.cut_depth(teacher, CutDepthOptions(blocks=2))
    options = PruneOptions(layers={"layers.0.key": 0.5, "layers.3.key": 0.5}, round_to=4)
    student = stages.prune(student, TOKENS, options, None, "generic").network
    options = DistillOptions(steps=60, batch_size=50, learning_rate=3e-3, relation_weight=5.0)
    objective = stages.distillation(student, teacher, samples, options, "sentence-embedding")
    batch = parts.augment.augmented(*samples.batch(np.arange(100)), options, "", 0)
    with torch.no_grad():
        before = float(objective(batch))
    parts.loop.fit(objective, samples, options)
    with torch.no_grad():
        assert float(objective(batch)) < 0.6 * before
    objective.release()
    assert not any("probe" in name for name, _ in student.named_modules())
    assert parts.network.has_open_batch(parts.network.to_network(parts.network.to_program(student, TOKENS)))
