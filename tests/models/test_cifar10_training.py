"""The shared CIFAR-10 training: what it reads and draws, and that a stopped training goes on as if it had not been."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "models"))

from cifar10_training import CLASSES, Recipe, augment, read_images, save, train, update

RECIPE = Recipe(epochs=2, optimizer="sgd", rate=0.05, weight_decay=1e-3, batch=16, small_epochs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        with zipfile.ZipFile(folder / f"cifar10-{part}.zip", "w") as archive:
            for index, name in enumerate(CLASSES):
                for number in range(count):
                    pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                    pixels[..., 0] += 15 * index  # blue, as OpenCV orders channels
                    archive.writestr(f"{name}/{number:04}.jpg", cv2.imencode(".jpg", pixels)[1].tobytes())
    return folder


class Net(nn.Module):
    """A tiny network; `stop_after` calls in training it is interrupted."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 10, 1)
        )
        self.left = stop_after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.layers(x).mean((2, 3))


def made(stop_after: int | None = None) -> Net:
    torch.manual_seed(7)
    return Net(stop_after)


def test_images_are_rgb_and_classes_are_folders(data: Path) -> None:
    images, classes = read_images(data / "cifar10-train.zip")
    assert images.shape == (60, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert classes.bincount().tolist() == [6] * 10
    truck = images[classes == 9].float().mean((0, 2, 3))
    assert truck[2] > truck[0] + 80


def test_without_cutout_augmenting_only_shifts_and_mirrors() -> None:
    image = torch.rand(1, 3, 32, 32).expand(64, 3, 32, 32)
    recipe = Recipe(epochs=1, optimizer="sgd", rate=1, weight_decay=0, cutout=0)
    drawn = augment(image, recipe, torch.Generator().manual_seed(0))
    wide = nn.functional.pad(image[:1], (4, 4, 4, 4), mode="reflect")
    windows = wide.unfold(2, 32, 1).unfold(3, 32, 1)[0].permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
    known = torch.cat([windows, windows.flip(3)]).flatten(1)
    nearest = (drawn.flatten(1)[:, None] - known[None]).abs().amax(2).min(1)
    assert nearest.values.max() == 0
    assert nearest.indices.unique().numel() > 30


def test_cutout_covers_at_most_its_square() -> None:
    recipe = Recipe(epochs=1, optimizer="sgd", rate=1, weight_decay=0, cutout=8)
    drawn = augment(torch.ones(200, 3, 32, 32), recipe, torch.Generator().manual_seed(0))
    covered = (drawn == 0).sum((2, 3))
    assert covered.max() == 64
    assert covered.min() >= 16  # at a corner a quarter of it is left


def test_a_stopped_training_continues_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = train(made(), RECIPE, data, 0, None)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(made(stop_after=4), RECIPE, data, 0, checkpoint)  # an epoch is three batches
    assert checkpoint.exists()
    continued = train(made(), RECIPE, data, 0, checkpoint)
    fresh = made().state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name
    assert not torch.equal(whole.state_dict()["layers.0.weight"], fresh["layers.0.weight"])


def test_saved_weights_keep_vectors_in_single_precision(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = made()
    save(model, tmp_path / "weights.safetensors")
    kept = load_file(tmp_path / "weights.safetensors")
    assert kept["layers.0.weight"].dtype == torch.float16
    assert kept["layers.1.running_var"].dtype == torch.float32
    made().load_state_dict(kept)


def test_the_average_moves_towards_the_model() -> None:
    average, model = made(), made()
    model.layers[0].weight.data += 1
    before = average.layers[0].weight.clone()
    update(average, model, 0.9)
    torch.testing.assert_close(average.layers[0].weight, before + 0.1)
