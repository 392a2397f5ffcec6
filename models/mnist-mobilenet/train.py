"""Train the digit classifier on MNIST-5k and write weights.safetensors.

    python models/mnist-mobilenet/train.py

A fixed number of epochs with the last weights kept, so the test images decide nothing; they only give the score that
is printed at the end. It takes about 4 minutes on one core: one thread, so that the same seed, PyTorch version and
kind of CPU give the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from build import build
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data

HERE = Path(__file__).parent


def load(card: ModelCard, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `[samples, 1, 28, 28]` preprocessed images and `[samples]` classes."""
    inputs = tuple(TensorSpec(s.name, s.shape, s.dtype, s.layout) for s in card.inputs)
    source = open_data(name, card, inputs, HERE)
    samples = [source[i] for i in range(len(source))]
    images = np.stack([s.inputs[inputs[0].name] for s in samples])
    return torch.from_numpy(images), torch.tensor([s.label for s in samples])


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate by up to 13°, scale and shear by up to 15 %, shift by up to 2.5 pixels, and warp smoothly."""
    count, _, height, width = images.shape

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = uniform(13 / 180 * math.pi), uniform(0.15)
    wide, high = 1 + uniform(0.15), 1 + uniform(0.15)
    rows = [
        torch.stack([angle.cos() * wide, (shear - angle.sin()) * high, uniform(5 / width)], 1),
        torch.stack([angle.sin() * wide, angle.cos() * high, uniform(5 / height)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    coarse = torch.randn(count, 2, 5, 5, generator=generator) * 0.06
    warp = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def train(images: torch.Tensor, classes: torch.Tensor, epochs: int, seed: int) -> nn.Module:
    """Return the trained network in eval mode."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().train()
    batch = 100
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            logits = model(distort(images[chosen], generator))
            loss = F.cross_entropy(logits, classes[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1}/{epochs}: training loss {total / len(images):.4f}", flush=True)
    return model.eval()


def top1(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the share of images whose largest logit is their class."""
    with torch.inference_mode():
        return (model(images).argmax(1) == classes).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "weights.safetensors")
    options = parser.parse_args()
    card = read_card(HERE / "card.yaml")
    started = time.perf_counter()
    model = train(*load(card, "mnist5k:train"), options.epochs, options.seed)
    seconds = time.perf_counter() - started
    score = top1(model, *load(card, "mnist5k:test"))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    unfinished = options.output.with_name(options.output.name + ".tmp")
    save_file(state, unfinished)
    unfinished.replace(options.output)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {options.output.stat().st_size} bytes, {seconds:.0f} s, test top-1 {score:.4f}")


if __name__ == "__main__":
    main()
