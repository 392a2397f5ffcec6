"""Train the vision transformer on CIFAR-10 and write weights.safetensors.

python models/cifar10-vit/train.py --data ../shared/data --checkpoint /tmp/vit
"""

from __future__ import annotations

import sys
from pathlib import Path

from build import build

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from cifar10_training import Recipe, run  # noqa: E402 - it lies one folder up

RECIPES = [Recipe(epochs=16, optimizer="adamw", rate=2e-3, weight_decay=0.05, cutout=0, bfloat16=True)]

if __name__ == "__main__":
    run(build, RECIPES, HERE, __doc__)
