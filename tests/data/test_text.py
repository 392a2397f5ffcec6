from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.core.errors import DataError, MissingBackendError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data import open_data

tokenizers = pytest.importorskip("tokenizers")

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film")
INPUTS = tuple(TensorSpec(n, (1, 8), "int64") for n in ("input_ids", "attention_mask", "token_type_ids"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a BERT-like tokenizer and a table of two texts."""
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    made = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "dev.tsv").write_text("a fine film\t1\na a a a a a a a a a\t0\n")
    return tmp_path


@pytest.fixture
def opened(folder, card):
    def opening(inputs: tuple[TensorSpec, ...] = INPUTS, name: str = "dev.tsv", labels=("bad", "good"), **preprocess):
        settings = {"tokenizer": "tokenizer.json", **preprocess}
        return open_data(name, card(task="text-classification", labels=labels, preprocess=settings), inputs, folder)

    return opening


def test_texts_become_ids_mask_and_types_of_the_models_length(opened):
    sample = opened()[0]
    assert {n: a.tolist() for n, a in sample.inputs.items()} == {
        "input_ids": [2, 4, 5, 6, 3, 0, 0, 0],
        "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0],
        "token_type_ids": [0] * 8,
    }
    assert (sample.label, sample.id) == (1, "line 1")


def test_long_texts_are_cut_and_keep_their_end_token(opened):
    assert opened()[1].inputs["input_ids"].tolist() == [2, 4, 4, 4, 4, 4, 4, 3]


def test_only_the_models_own_inputs_are_made(opened):
    inputs = (TensorSpec("attention_mask", (1, -1), "float32"), TensorSpec("input_ids", (1, -1), "int32"))
    made = opened(inputs, max_length=6)[0].inputs
    assert {n: (a.dtype.name, a.shape) for n, a in made.items()} == {
        "attention_mask": ("float32", (6,)),
        "input_ids": ("int32", (6,)),
    }


def test_the_tokenizers_own_padding_is_kept(opened, folder):
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_padding(pad_id=6, pad_token="film")
    made.save(str(folder / "tokenizer.json"))
    assert opened()[0].inputs["input_ids"].tolist() == [2, 4, 5, 6, 3, 6, 6, 6]


def test_a_table_with_text_and_path_feeds_the_text(opened, folder):
    (folder / "t.csv").write_text("path,text,label\na.png,film,good\n")
    sample = opened(name="t.csv")[0]
    assert sample.inputs["input_ids"][1] == 6 and sample.slices == {"path": "a.png"}


@pytest.mark.parametrize(
    ("inputs", "preprocess", "message"),
    [
        ((TensorSpec("pixels", (1, 8), "int64"),), {}, "input 'pixels' of shape .* cannot be filled from text"),
        ((TensorSpec("input_ids", (1, 2, 8), "int64"),), {}, "cannot be filled from text"),
        ((*INPUTS[:1], TensorSpec("attention_mask", (1, 9), "int64")), {}, "differ in length: 8, 9"),
        (INPUTS, {"max_length": 16}, "max_length is 16, but the model takes 8"),
    ],
)
def test_a_model_that_texts_cannot_feed_is_refused(opened, inputs, preprocess, message):
    with pytest.raises(UsageError, match=message):
        opened(inputs, **preprocess)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": 3}', b"\xff\xfe", b"PK\x03\x04"])
def test_what_is_no_tokenizer_is_named(opened, folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: "):
        opened()


def test_a_missing_tokenizer_is_named(opened):
    with pytest.raises(DataError, match=r"none\.json: no such file; .*preprocess\.tokenizer"):
        opened(tokenizer="none.json")


def test_ids_that_exceed_the_inputs_dtype_are_refused(opened, folder):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"film": 300, "[UNK]": 1}, unk_token="[UNK]"))
    made.save(str(folder / "tokenizer.json"))
    (folder / "dev.tsv").write_text("film\t0\n")
    with pytest.raises(
        DataError, match=r"dev\.tsv: line 1: token id 300 does not fit input 'input_ids' of dtype uint8"
    ):
        opened((TensorSpec("input_ids", (1, 8), "uint8"),))[0]


def test_the_fingerprint_follows_the_tokenizer(opened, folder):
    first = opened().fingerprint()
    assert opened().fingerprint() == first
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace("fine", "poor"))
    assert opened().fingerprint() != first


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_every_text_has_the_models_shape_or_is_refused(opened, folder, text):
    import json

    (folder / "t.jsonl").write_text(json.dumps({"text": text, "label": 0}))
    inputs = opened(name="t.jsonl")[0].inputs
    assert all(a.shape == (8,) and a.dtype == np.int64 for a in inputs.values())
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (ids[mask == 0] == 0).all() and (np.diff(mask) <= 0).all()


def test_a_missing_tokenizers_package_names_its_extra(opened, monkeypatch):
    monkeypatch.delitem(sys.modules, "edgeopt.data.text", raising=False)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingBackendError, match=r'tokenizers is not installed: pip install "edgeopt\[text\]"'):
        opened()


@pytest.mark.shared_data
def test_sst2_is_read_without_a_header(opened):
    path = Path(__file__).parents[3] / "shared/data/sst2/dev.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    source = opened(name=str(path))
    assert len(source) == 872 and {source[i].label for i in range(20)} <= {0, 1}
