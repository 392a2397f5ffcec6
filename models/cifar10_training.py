"""What the CIFAR-10 models' train.py share: reading the images, augmenting them on tensors, and one training loop.

A fixed number of epochs with the last average of the weights kept, so the test images decide nothing; they only give
the score that is printed. One thread, and every epoch draws from a generator of its own, so the same seed, PyTorch
version and kind of CPU give the same weights, also when training was stopped and continued.
"""

from __future__ import annotations

import argparse
import copy
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

DATA = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = torch.tensor([125.3, 123.0, 113.9]).view(1, 3, 1, 1)  # of the training pixels, 0 to 255
STD = torch.tensor([63.0, 62.1, 66.7]).view(1, 3, 1, 1)
SIDE = 32


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `small_epochs` is how many of the `epochs` see images shrunk to `small_side`.

    With `bfloat16` the forward pass is computed in it where PyTorch's autocast says so.
    """

    epochs: int
    optimizer: str
    rate: float
    weight_decay: float
    batch: int = 128
    warm_up: float = 0.2
    smoothing: float = 0.1
    cutout: int = 8
    small_epochs: int = 0
    small_side: int = 24
    average: float = 0.999
    bfloat16: bool = False


def read_images(archive: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `[images, 3, 32, 32]` uint8 RGB and `[images]` classes from a zip of `<class>/<image>.jpg`."""
    images, classes = [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            pixels = cv2.imdecode(np.frombuffer(files.read(name), np.uint8), cv2.IMREAD_COLOR)
            images.append(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).transpose(2, 0, 1))
            classes.append(CLASSES.index(name.split("/")[0]))
    return torch.from_numpy(np.stack(images)), torch.tensor(classes)


def normalize(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - MEAN) / STD


def augment(images: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 4 pixels, mirror every other image, and cover a square of `recipe.cutout` with the mean."""
    count = len(images)

    def draw(limit: int) -> torch.Tensor:
        return torch.randint(limit, (count,), generator=generator)

    windows = F.pad(images, (4, 4, 4, 4), mode="reflect").unfold(2, SIDE, 1).unfold(3, SIDE, 1)
    shifted = windows[torch.arange(count), :, draw(9), draw(9)]
    mirrored = torch.where(draw(2).bool().view(-1, 1, 1, 1), shifted.flip(3), shifted)
    line = torch.arange(SIDE)
    top, left = draw(SIDE).view(-1, 1), draw(SIDE).view(-1, 1)
    rows = (line >= top - recipe.cutout // 2) & (line < top + recipe.cutout // 2)
    columns = (line >= left - recipe.cutout // 2) & (line < left + recipe.cutout // 2)
    return mirrored.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer; biases, norms and other vectors are not decayed."""
    wide = [p for p in model.parameters() if p.ndim > 1]
    thin = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": recipe.weight_decay}, {"params": thin, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, recipe.rate)


def top1(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the share of images whose largest logit is their class."""
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(normalize(part)).argmax(1) == label).sum())
            for part, label in zip(images.split(250), classes.split(250), strict=True)
        )
    return right / len(images)


def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's; counters are copied."""
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def settled(average: nn.Module, images: torch.Tensor, recipe: Recipe, seed: int, batches: int) -> nn.Module:
    """Return a contiguous copy in eval mode whose batch norms hold the statistics of its own activations.

    The running statistics of the model that was trained do not fit its averaged weights (Izmailov et al., Averaging
    weights leads to wider optima, 2018, section 3.2).
    """
    model = copy.deepcopy(average).to(memory_format=torch.contiguous_format).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for chosen in torch.randperm(len(images), generator=generator)[: batches * recipe.batch].split(recipe.batch):
            model(augment(normalize(images[chosen]), recipe, generator))
    return model.eval()


def train(model: nn.Module, recipe: Recipe, data: Path, seed: int, checkpoint: Path | None) -> nn.Module:
    """Train and return the averaged model in eval mode, its score printed after every fifth epoch."""
    images, classes = read_images(data / "cifar10-train.zip")
    test = read_images(data / "cifar10-test.zip")
    model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = optimizer_of(model, recipe)
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.epochs * steps + 1, pct_start=recipe.warm_up, cycle_momentum=False
    )
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    first, seconds = 0, 0.0
    if checkpoint:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first, seconds = state["epoch"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in range(first, recipe.epochs):
        started, total = time.perf_counter(), 0.0
        torch.manual_seed(seed * 1000 + epoch)
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        model.train()
        for chosen in torch.randperm(len(images), generator=generator)[: steps * recipe.batch].split(recipe.batch):
            batch = augment(normalize(images[chosen]), recipe, generator)
            if epoch < recipe.small_epochs:
                size = (recipe.small_side, recipe.small_side)
                batch = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), classes[chosen], label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            update(average, model, recipe.average)
            total += loss.item()
        seconds += time.perf_counter() - started
        if checkpoint:
            state = {name: part.state_dict() for name, part in parts.items()}
            unfinished = checkpoint.with_name(checkpoint.name + ".tmp")
            torch.save({**state, "epoch": epoch + 1, "seconds": seconds}, unfinished)
            unfinished.replace(checkpoint)
        line = f"epoch {epoch + 1}/{recipe.epochs}: training loss {total / steps:.4f}, {seconds:.0f} s"
        if (epoch + 1) % 5 == 0:
            line += f", top-1 {top1(settled(average, images, recipe, seed, 20), *test):.4f}"
        print(line, flush=True)
    return settled(average, images, recipe, seed, 100)


def save(model: nn.Module, path: Path) -> None:
    """Write the weights: matrices and kernels in half precision, vectors (norms, biases) in single."""
    state = {
        name: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in model.state_dict().items()
    }
    unfinished = path.with_name(path.name + ".tmp")
    save_file(state, unfinished)
    unfinished.replace(path)


def run(build: Callable[[], nn.Module], recipes: Sequence[Recipe], folder: Path, description: str | None) -> None:
    """Parse the command line, train by each recipe from where the last one ended, write `weights.safetensors`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of cifar10-train.zip and cifar10-test.zip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="folder, written to after every epoch and continued from")
    parser.add_argument("--output", type=Path, default=folder / "weights.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    model = build()
    for number, recipe in enumerate(recipes):
        checkpoint = options.checkpoint / f"{number}.pt" if options.checkpoint else None
        model = train(model, recipe, options.data, options.seed, checkpoint)
    save(model, options.output)
    seconds = time.perf_counter() - started
    model = build()
    model.load_state_dict(load_file(options.output))
    score = top1(model, *read_images(options.data / "cifar10-test.zip"))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {options.output.stat().st_size} bytes, {seconds:.0f} s, test top-1 {score:.4f}")
