"""Train the MobileNetV3 on CIFAR-10 and write weights.safetensors.

python models/cifar10-mobilenetv3/train.py --data ../shared/data --checkpoint /tmp/mobilenetv3
"""

from __future__ import annotations

import sys
from pathlib import Path

from build import build

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from cifar10_training import Recipe, run  # noqa: E402 - it lies one folder up

RECIPES = [
    Recipe(epochs=16, optimizer="sgd", rate=0.2, weight_decay=5e-4, cutout=0, small_epochs=9),
    Recipe(epochs=20, optimizer="sgd", rate=0.15, weight_decay=5e-4, cutout=0, small_epochs=8),
    Recipe(epochs=10, optimizer="sgd", rate=0.1, weight_decay=5e-4, cutout=0),
    Recipe(epochs=10, optimizer="sgd", rate=0.07, weight_decay=5e-4, cutout=0),
]

if __name__ == "__main__":
    run(build, RECIPES, HERE, __doc__)
