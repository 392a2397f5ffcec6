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
