"""Every format ships the integers that the weights were rounded to once, bit for bit."""

from __future__ import annotations

import importlib
import itertools
import warnings

import numpy as np
import pytest
import torch

from edgeopt.core.formats import FORMATS
from edgeopt.exporters.coreml_executorch_weights import integers_of, layer_weights


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, when a module is copied
@pytest.mark.parametrize("model", ["conv", "tokens_through_attention"])
@pytest.mark.parametrize("form", list(FORMATS))
def test_static_int8_stores_the_rounded_weights(make, prepared, model, form):
    made = make(model, form, "static_wi8_ai8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # executorch and torchao, about their surroundings
        stored_weights = importlib.import_module(f"edgeopt.exporters.{form}_weights").stored_weights
        program = torch.export.load(prepared(model, "static_wi8_ai8").quantized / "conditioned.pt2")
    rounded = [integers_of(weight, 8) for weight in layer_weights(program.module())]
    expected = [(g.values.numpy().astype(np.int8), g.scale.reshape(-1).detach().numpy()) for g in rounded]
    stored = stored_weights(made.path)
    assert len(stored) == len(expected) >= 3
    for own in stored:
        matches = [scale for values, scale in expected if same_in_some_order(values, own.values)]
        assert len(matches) == 1, f"{own.values.shape} is none of the rounded weights"
        np.testing.assert_array_equal(own.scale, matches[0])


def same_in_some_order(values, stored):
    """Tell whether two arrays are the same but for the order of their axes."""
    wanted = values.squeeze() if values.size == stored.size else values
    have = stored.squeeze()
    if values.size != stored.size or wanted.ndim != have.ndim:
        return False
    orders = itertools.permutations(range(wanted.ndim))
    return any(
        wanted.transpose(order).shape == have.shape and np.array_equal(wanted.transpose(order), have)
        for order in orders
    )
