"""Torch-Pruning as its own CIFAR example uses it: small steps of group-norm pruning, then plain training on labels.

Settings are the example's (benchmarks/main.py of the project): global group-norm importance, SGD with a rate of .01,
momentum .9 and weight decay 5e-4, batches of 128, the rate cut to a tenth after 60 and after 80 % of the epochs.
Images, their augmentation and the arithmetic of the forward pass (bfloat16) are those of the models' own training.

    python benchmarks/compression/torch_pruning_flow.py --data ../shared/data --epochs 12 --macs 0.5 --out FILE
    python benchmarks/compression/torch_pruning_flow.py ... --device cuda    # trains there
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch_pruning as tp
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "cifar10-resnet20"
sys.path[:0] = [str(ROOT / "models"), str(MODEL)]

from build import build  # noqa: E402 - lies in the model's folder
from cifar10_training import Recipe, augment, normalize, read_images, top1  # noqa: E402

STEPS = 400
BATCH = 128


def prune(model: nn.Module, macs: float) -> dict[str, int]:
    """Prune in place until the multiply-accumulates are that share of the model's; returns counts before and after."""
    example = torch.zeros(1, 3, 32, 32)
    before = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.GroupNormPruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        iterative_steps=STEPS,
        pruning_ratio=1.0,
        ignored_layers=[model.head],
    )
    after = before
    while after[0] > macs * before[0]:
        pruner.step()
        after = tp.utils.count_ops_and_params(model, example)
    counts = {"macs_before": before[0], "params_before": before[1], "macs": after[0], "params": after[1]}
    return {name: int(count) for name, count in counts.items()}


def score(model: nn.Module, images: torch.Tensor, classes: torch.Tensor, device: str) -> float:
    """Return top-1, computed where the model lies."""
    model.eval()
    with torch.inference_mode():
        answers = [model(normalize(part).to(device)).argmax(1).cpu() for part in images.split(250)]
    return float((torch.cat(answers) == classes).float().mean())


def finetune(
    model: nn.Module, data: Path, epochs: int, seed: int, test: tuple[torch.Tensor, torch.Tensor], device: str
) -> list[float]:
    """Train on labels; returns top-1 on the test images after every epoch."""
    images, classes = read_images(data / "cifar10-train.zip")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    milestones = [round(epochs * 0.6), round(epochs * 0.8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    recipe = Recipe(epochs, "sgd", 0.01, 5e-4, cutout=0)
    scores = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        model.train()
        steps = len(images) // BATCH
        for chosen in torch.randperm(len(images), generator=generator)[: steps * BATCH].split(BATCH):
            batch = augment(normalize(images[chosen]), recipe, generator)
            with torch.autocast(device, torch.bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last).to(device))
            loss = F.cross_entropy(logits.float(), classes[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        scores.append(score(model, *test, device))
        print(f"epoch {epoch + 1}/{epochs}: top-1 {scores[-1]:.4f}", flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that trains")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    model = build()
    model.load_state_dict(load_file(MODEL / "weights.safetensors"))
    model.eval()
    test = read_images(options.data / "cifar10-test.zip")
    dense = top1(model, *test)
    counts = prune(model, options.macs)
    pruned = top1(model, *test)
    model = model.to(options.device, memory_format=torch.channels_last)
    scores = finetune(model, options.data, options.epochs, options.seed, test, options.device)
    found = {"dense": dense, "pruned": pruned, "last": scores[-1], "best": max(scores), "scores": scores, **counts}
    found |= {"epochs": options.epochs, "seed": options.seed, "seconds": round(time.perf_counter() - started)}
    found["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    found["torch_pruning"] = tp.__version__
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
