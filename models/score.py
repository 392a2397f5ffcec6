"""Print a model's score on labelled data, run by PyTorch on the CPU through edgeopt's own preprocessing.

python models/score.py models/efficientnet-lite0/card.yaml ../shared/data/imagenet-sample/labels.csv
python models/score.py models/minilm/card.yaml ../shared/data/sst2/dev.tsv

Classifiers: the share of samples whose largest logit is their class. Sentence encoders: the share whose class is that
of most of their ten nearest other samples by cosine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.model import TensorSpec
from edgeopt.data import is_builtin, open_data
from edgeopt.data.source import DataSource
from edgeopt.sources import from_code, from_weights

BATCH = 25
NEIGHBOURS = 10


def load(card: ModelCard, folder: Path) -> nn.Module:
    """Build the module that the card names and give it the card's weights."""
    model = from_code.build(str(folder.absolute() / (card.arch or card.source)))
    if card.arch:
        weights = folder / card.source
        from_weights.fit(model, from_weights.read_safetensors(weights), weights)
    return model.eval()


def outputs(model: nn.Module, source: DataSource, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `[samples, ...]` outputs and `[samples]` classes."""
    made, classes = [], []
    with torch.inference_mode():
        for start in range(0, len(source), BATCH):
            samples = [source[i] for i in range(start, min(start + BATCH, len(source)))]
            made.append(model(*(torch.stack([torch.from_numpy(s.inputs[n]) for s in samples]) for n in names)))
            classes += [s.label for s in samples]
    return torch.cat(made), torch.tensor(classes)


def neighbours(vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return for each sample the class of most of its nearest others (the smaller index where two are level)."""
    likeness = vectors @ vectors.T
    likeness.fill_diagonal_(-torch.inf)
    nearest = classes[likeness.topk(NEIGHBOURS).indices]
    return nn.functional.one_hot(nearest).sum(1).argmax(1)


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
    made, classes = outputs(model, source, tuple(s.name for s in inputs))
    encoder = card.task == "sentence-embedding"
    answers = neighbours(made, classes) if encoder else made.argmax(1)
    correct = int((answers == classes).sum())
    told = f"class of the {NEIGHBOURS} nearest" if encoder else "top-1"
    print(f"{told} {correct / len(source):.4f} ({correct} of {len(source)})")


if __name__ == "__main__":
    main()
