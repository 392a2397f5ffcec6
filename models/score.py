"""Print a model's top-1 on labelled data, run by PyTorch on the CPU through edgeopt's own preprocessing.

python models/score.py models/efficientnet-lite0/card.yaml ../shared/data/imagenet-sample/labels.csv
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.model import TensorSpec
from edgeopt.data import is_builtin, open_data


def load(card: ModelCard, folder: Path) -> nn.Module:
    """Build the module that the card names and give it the card's weights."""
    file, _, factory = (card.arch or card.source).partition(":")
    spec = importlib.util.spec_from_file_location("reference_model", folder / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = getattr(module, factory)()
    if card.arch:
        model.load_state_dict(load_file(folder / card.source))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", type=Path)
    parser.add_argument("data", nargs="?", help="default: the card's eval data")
    options = parser.parse_args()
    card = read_card(options.card)
    model = load(card, options.card.parent)
    name = options.data or card.data.eval
    if name is None:
        parser.error(f"{options.card} names no eval data; give some")
    if options.data and not is_builtin(name):
        name = str(Path(name).absolute())
    inputs = tuple(TensorSpec(s.name, s.shape, s.dtype, s.layout) for s in card.inputs)
    source = open_data(name, card, inputs, options.card.parent)
    correct = 0
    with torch.inference_mode():
        for i in range(len(source)):
            sample = source[i]
            logits = model(torch.from_numpy(sample.inputs[inputs[0].name][None]))
            correct += int(logits.argmax().item() == sample.label)
    print(f"top-1 {correct / len(source):.4f} ({correct} of {len(source)})")


if __name__ == "__main__":
    main()
