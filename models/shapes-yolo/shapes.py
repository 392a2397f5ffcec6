"""Generated images of circles, squares and triangles on noise, and their boxes.

    python models/shapes-yolo/shapes.py OUT --images 200 --seed 1

writes `OUT/images/*.png`, their boxes as COCO (`OUT/annotations.json`) and as YOLO labels (`OUT/labels/*.txt`,
`OUT/data.yaml`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("circle", "square", "triangle")
SMALLEST, LARGEST = 120, 240
"""Of an image's sides, in pixels."""


def scene(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image `[height, width, 3]` uint8, boxes `[n, 4]` (left, top, right, bottom) and classes `[n]`."""
    height, width = random.integers(SMALLEST, LARGEST + 1, 2)
    image = _background(random, height, width)
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    for _ in range(random.integers(1, 6)):
        kind = int(random.integers(len(NAMES)))
        radius = random.uniform(0.08, 0.22) * min(height, width)
        centre = random.uniform((radius, radius), (width - radius, height - radius))
        outline = _outline(kind, radius, centre, random.uniform(0, 2 * np.pi))
        box = np.concatenate([outline.min(0), outline.max(0)])
        if (box < 0).any() or (box[2:] > (width, height)).any() or any(_overlap(box, b) > 0 for b in boxes):
            continue
        colour = _contrasting(random, image, box)
        cv2.fillPoly(image, [np.rint(outline * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4)
        boxes.append(box)
        classes.append(kind)
    image = np.clip(image + random.normal(0, random.uniform(2, 14), image.shape), 0, 255).astype(np.uint8)
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)


def _background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = random.uniform(0, 255, (int(random.integers(1, 5)), int(random.integers(1, 5)), 3))
    smooth = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth.reshape(height, width, 3) + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def _outline(kind: int, radius: float, centre: np.ndarray, angle: float) -> np.ndarray:
    corners = (64, 4, 3)[kind]
    turns = angle + np.arange(corners) * 2 * np.pi / corners
    return centre + radius * np.stack([np.cos(turns), np.sin(turns)], 1)


def _contrasting(random: np.random.Generator, image: np.ndarray, box: np.ndarray) -> tuple[float, ...]:
    left, top, right, bottom = box.astype(int)
    behind = image[top : bottom + 1, left : right + 1].reshape(-1, 3).mean(0)
    while True:
        colour = random.uniform(0, 255, 3)
        if np.abs(colour - behind).max() > 70:
            return tuple(float(c) for c in colour)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.clip(sides, 0, None)))


def write(out: Path, images: int, seed: int) -> None:
    """Write a data set in both forms."""
    random = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for index in range(images):
        image, boxes, classes = scene(random)
        height, width = image.shape[:2]
        name = f"{index:05d}.png"
        cv2.imwrite(str(out / "images" / name), image[..., ::-1])
        records.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        lines = []
        for (left, top, right, bottom), kind in zip(boxes.tolist(), classes.tolist(), strict=True):
            w, h = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": kind + 1,
                    "bbox": [left, top, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
            lines.append(f"{kind} {(left + w / 2) / width} {(top + h / 2) / height} {w / width} {h / height}\n")
        (out / "labels" / f"{index:05d}.txt").write_text("".join(lines))
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]
    document = {"images": records, "annotations": annotations, "categories": categories}
    (out / "annotations.json").write_text(json.dumps(document))
    (out / "data.yaml").write_text(f"path: .\nval: images\nnames: {json.dumps(dict(enumerate(NAMES)))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="training draws from seed 0")
    arguments = parser.parse_args()
    write(arguments.out, arguments.images, arguments.seed)


if __name__ == "__main__":
    main()
