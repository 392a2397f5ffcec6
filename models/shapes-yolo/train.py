"""Train a narrow YOLO11 on generated shapes; writes `weights.pt` in ultralytics' own form.

    python models/shapes-yolo/train.py            # about 15 minutes of one core

ultralytics is AGPL-3.0, and so are networks made by it: this folder is not under edgeopt's Apache-2.0.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"YOLO_AUTOINSTALL": "0", "YOLO_OFFLINE": "1", "YOLO_VERBOSE": "0", "YOLO_CONFIG_DIR": tempfile.mkdtemp()}

import numpy as np
import torch
import yaml

from edgeopt.data.letterbox import letterbox, to_input, window
from edgeopt.sources.torchvision_ops import import_torchvision

import_torchvision()

import ultralytics  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from shapes import NAMES, scene  # noqa: E402

SIDE = 160
BATCH = 16
WIDTH = 0.125
"""Of YOLO11; its `n` has 0.25."""


def network() -> DetectionModel:
    """Return YOLO11 of half the width of `n`, untrained."""
    path = Path(ultralytics.__file__).parent / "cfg" / "models" / "11" / "yolo11.yaml"
    document = yaml.safe_load(path.read_text())
    document |= {"nc": len(NAMES), "scales": {"n": [0.5, WIDTH, 512]}, "scale": "n"}
    model = DetectionModel(document, ch=3, verbose=False)
    model.names = dict(enumerate(NAMES))
    model.args = get_cfg(overrides={"task": "detect", "imgsz": SIDE})
    return model


def batch(random: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return one batch as ultralytics' loss takes it: boxes as centre and size, in shares of the image."""
    images, owners, classes, boxes = [], [], [], []
    for index in range(BATCH):
        image, found, kinds = scene(random)
        place = window(image.shape[:2], (SIDE, SIDE))
        images.append(letterbox(image, (SIDE, SIDE)))
        box = to_input(found, place) / SIDE
        boxes.append(np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1))
        owners += [index] * len(box)
        classes.append(kinds)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 255
    return {
        "img": pixels,
        "batch_idx": torch.tensor(owners, dtype=torch.float32),
        "cls": torch.from_numpy(np.concatenate(classes)).float()[:, None],
        "bboxes": torch.from_numpy(np.concatenate(boxes)).float(),
    }


def train(minutes: float, out: Path) -> None:
    """Train for a time of one core, the learning rate falling as a cosine; the average of the weights is kept."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = network().train()
    average = copy.deepcopy(model).eval()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}])
    start, step, told = time.process_time(), 0, 0.0
    while (share := (time.process_time() - start) / (60 * minutes)) < 1:
        rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, parts = model.loss(batch(random))
        optimizer.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        step += 1
        keep = 0.998 * (1 - math.exp(-step / 200))
        with torch.no_grad():
            for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if a.dtype.is_floating_point:
                    a.lerp_(b, 1 - keep)
        if time.monotonic() - told > 15:
            told = time.monotonic()
            told_parts = ", ".join(f"{name} {float(value):.3f}" for name, value in parts.items())
            print(f"step {step}, {share:.0%}, {told_parts}", flush=True)
    average.criterion = None
    average.args = {"imgsz": SIDE, "task": "detect"}
    for parameter in average.parameters():
        parameter.requires_grad_(False)
    temporary = out.with_suffix(".partial")
    torch.save({"model": average.half(), "train_args": average.args}, temporary)
    temporary.replace(out)
    print(f"{step} steps of {BATCH} images, {sum(p.numel() for p in average.parameters()):,} parameters: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "weights.pt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
