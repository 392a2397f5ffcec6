"""The walk over a graph, `edgeopt.stages.walk`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core.model import TensorSpec
from edgeopt.stages.walk import last_uses, peak_bytes, walk

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, when a module is copied

WORDS, LENGTH, WIDTH = 50_000, 8, 16


class Text(nn.Module):
    """Embeddings of many words, a layer over the tokens, their mean, and a layer over the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.token = nn.Linear(WIDTH, WIDTH)
        self.sentence = nn.Linear(WIDTH, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[:, :, None].float()
        return self.sentence((self.token(self.words(input_ids)) * mask).sum(1) / mask.sum(1))


INPUTS = tuple(TensorSpec(name, (1, LENGTH), "int64") for name in ("input_ids", "attention_mask"))


def graph_of_text():
    example = torch.ones(1, LENGTH, dtype=torch.int64)
    return copy.deepcopy(torch.export.export(Text().eval(), (example, example)).module())


def texts(lengths):
    for seed, length in enumerate(lengths):
        ids = np.random.default_rng(seed).integers(1, WORDS, (1, LENGTH))
        mask = (np.arange(LENGTH) < length).astype(np.int64)[None]
        yield {"input_ids": ids * mask, "attention_mask": mask}


def test_layers_over_tokens_do_not_see_padding():
    seen = {}
    for arrival in walk(graph_of_text(), lambda: texts([3, 8, 0]), INPUTS):
        seen[arrival.layer.name] = [tuple(v.shape) for v in arrival.inputs]
        assert [tuple(v.shape) for v in arrival.float_inputs] == seen[arrival.layer.name]
    assert seen == {
        "words": [(1, LENGTH)] * 3,
        "token": [(3, WIDTH), (8, WIDTH), (1, LENGTH, WIDTH)],  # a text of padding alone is taken as it is
        "sentence": [(1, WIDTH)] * 3,
    }


def test_weights_do_not_count_among_the_bytes_of_a_sample():
    nodes = list(graph_of_text().graph.nodes)
    assert peak_bytes(nodes, last_uses(nodes)) < 8 * 4 * LENGTH * WIDTH
    assert 1000 * peak_bytes(nodes, last_uses(nodes)) < 4 * WORDS * WIDTH


class Shrinking(nn.Module):
    """Layers whose values become ever smaller, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.same = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.narrow(torch.relu(self.wide(x))))
        return self.last((x + self.same(x)).mean((2, 3)))


def walked(max_bytes: int):
    module = copy.deepcopy(torch.export.export(Shrinking().eval(), (torch.zeros(1, 3, 16, 16),)).module())
    images = [{"x": np.random.default_rng(i).normal(size=(1, 3, 16, 16)).astype(np.float32)} for i in range(9)]
    seen = {}
    specs = (TensorSpec("x", (1, 3, 16, 16), "float32", "NCHW"),)
    for arrival in walk(module, lambda: iter(images), specs, max_bytes=max_bytes):
        seen[arrival.layer.name] = arrival.inputs, arrival.float_inputs
        arrival.layer.set_weight(arrival.layer.weight.round(decimals=1))
    return seen


def test_samples_join_where_there_is_room_for_them():
    few, all_of_them = walked(4 * 2 * 4 * 32 * 16 * 16), walked(1 << 30)
    counts = {name: len(inputs) for name, (inputs, _) in few.items()}
    assert 1 < counts["wide"] < counts["same"] == counts["last"] == 9
    assert {name: len(inputs) for name, (inputs, _) in all_of_them.items()} == dict.fromkeys(counts, 9)
    for name, (inputs, in_float) in few.items():
        for mine, whole in ((inputs, all_of_them[name][0]), (in_float, all_of_them[name][1])):
            for one, other in zip(mine, whole, strict=False):
                assert torch.equal(one, other)
    assert not torch.equal(few["last"][0][0], few["last"][1][0])
