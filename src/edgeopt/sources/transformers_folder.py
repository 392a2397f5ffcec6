"""A Hugging Face model folder read as data: configuration, task, weights, tokenizer, pooling, image preprocessing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from edgeopt.core.card import Task
from edgeopt.core.errors import SourceError, UsageError, did_you_mean
from edgeopt.sources.request import SourceRequest

HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
}
TASKS = ("generic", "sentence-embedding", *dict.fromkeys(HEADS.values()))
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LENGTH = 128
MAX_JSON_BYTES = 16 * 2**20
MAX_SIZE = 2**24
MAX_LAYERS = 512
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area", 5: "bilinear"}


@dataclass(frozen=True)
class Folder:
    """What the folder tells.

    Attributes:
        path: of the folder.
        config: its `config.json`.
        task: of the model.
        weights: files of weights; none where they are to be random.
        pooling: `cls`, `mean` or `max`: how token vectors become a sentence's.
        normalize: whether sentence vectors have unit length.
    """

    path: Path
    config: Mapping[str, Any]
    task: str
    weights: tuple[Path, ...]
    pooling: str = "mean"
    normalize: bool = True

    def length(self, longest: int | None) -> int:
        """Return the number of tokens that inputs are padded to where nobody asks for another."""
        told = [
            read_json(self.path / "sentence_bert_config.json", optional=True).get("max_seq_length"),
            read_json(self.path / "tokenizer_config.json", optional=True).get("model_max_length"),
            longest,
        ]
        return min([LENGTH, *(int(n) for n in told if isinstance(n, int | float) and n > 0)])

    def text_card(self, length: int, outputs: tuple[str, ...]) -> dict[str, Any]:
        """Return what the folder tells of a text model's card."""
        card: dict[str, Any] = {"task": self.task, "outputs": outputs, "preprocess": {"max_length": length}}
        tokenizer = self.path / "tokenizer.json"
        if tokenizer.is_file():
            card["preprocess"]["tokenizer"] = str(tokenizer)
        return card | self._labels()

    def image_card(self, _location: Path) -> dict[str, Any]:
        """Return what the folder tells of an image model's card."""
        own = read_json(self.path / "preprocessor_config.json", optional=True)
        preprocess: dict[str, Any] = {"resize": self.image_size(None)}
        if own.get("do_resize", True):
            size = own.get("size", 224)
            short = size.get("shortest_edge") if isinstance(size, dict) else None
            if short is not None and "crop_pct" in own and short < 384:
                preprocess |= {"resize": int(short / own["crop_pct"]), "crop": short}
            elif short is not None:
                preprocess["resize"] = short
            preprocess["interpolation"] = PILLOW.get(own.get("resample", 2), "bilinear")
        if own.get("do_center_crop"):
            preprocess["crop"] = _pair(own.get("crop_size", 224))
        if own.get("do_rescale", True):
            preprocess["scale"] = own.get("rescale_factor", 1 / 255)
        if own.get("do_normalize", True) and "image_mean" in own:
            preprocess |= {"mean": _numbers(own["image_mean"]), "std": _numbers(own.get("image_std", 1.0))}
        return {"task": self.task, "outputs": ("logits",), "preprocess": preprocess} | self._labels()

    def image_size(self, configured: Any) -> tuple[int, int]:
        """Return height and width of the model's input: the crop, the size, else the configuration's."""
        own = read_json(self.path / "preprocessor_config.json", optional=True)
        for value in (own.get("crop_size") if own.get("do_center_crop") else None, own.get("size"), configured):
            if value is not None:
                return _pair(value)
        return _pair(self.config.get("image_size", 224))

    def _labels(self) -> dict[str, Any]:
        names = self.config.get("id2label")
        if not isinstance(names, dict) or self.task not in HEADS.values() or self.task == "question-answering":
            return {}
        try:
            labels = tuple(str(names[k]) for k in sorted(names, key=int))
        except ValueError:
            return {}
        unnamed = all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
        unique = len(set(labels)) == len(labels) and all(labels)
        return {"labels": labels} if unique and not unnamed else {}


def open_folder(request: SourceRequest) -> Folder:
    """Read the folder that `hf:FOLDER`, `hf:PACKAGE` or `hf:FOLDER@TASK` names.

    Raises:
        UsageError: no such folder or task.
        SourceError: a file of it is damaged, or asks for what edgeopt does not do.
    """
    location, _, asked = request.location.partition("@")
    if asked and asked not in TASKS:
        raise UsageError(f"{request.spoken}: unknown task{did_you_mean(asked, TASKS)}")
    path = _find(location, request)
    config = read_json(path / "config.json")
    _check_sizes(config, path)
    if "model_type" not in config and "architecture" in config:
        raise UsageError(f"{request.spoken}: a model of timm; name it timm:{location}")
    if config.get("quantization_config"):
        raise SourceError(f"{path}: its weights are quantized already; name the model in float")
    told = request.card.task if request.card.task in TASKS and request.card.task != "generic" else ""
    task = asked or told or _task(config, path)
    pooling, normalize = _pooling(path) if task == "sentence-embedding" else ("mean", True)
    return Folder(path, config, task, _weights(path), pooling, normalize)


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        SourceError: missing (unless `optional`), damaged or too large.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{path}: is larger than {MAX_JSON_BYTES >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise SourceError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: expected a JSON object")
    return found


def _find(location: str, request: SourceRequest) -> Path:
    path = (request.folder / location).resolve()
    if path.name == "config.json":
        path = path.parent
    if (path / "config.json").is_file():
        return path
    if not path.exists() and re.fullmatch(r"\w+", location):
        found = find_spec(location)
        root = Path(found.origin).parent if found is not None and found.origin else None
        for inner in sorted(root.glob("**/config.json"), key=lambda p: len(p.parts)) if root is not None else ():
            return inner.parent
    raise UsageError(f"{request.spoken}: {path} is no folder with a config.json, nor an installed package with one")


def _check_sizes(config: Mapping[str, Any], path: Path) -> None:
    for name, value in config.items():
        limit = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
        if isinstance(value, int | float) and not isinstance(value, bool) and not -limit <= value <= limit:
            raise SourceError(f"{path}/config.json: {name} is {value}, beyond {limit}")


def _task(config: Mapping[str, Any], path: Path) -> str:
    named = config.get("architectures") or [""]
    architecture = str(named[0] if isinstance(named, list) else named)
    for suffix, task in HEADS.items():
        if architecture.endswith(suffix):
            return task
    if (path / "modules.json").is_file():
        return "sentence-embedding"
    if architecture.endswith("Model"):
        return "generic"
    raise UsageError(
        f"{path}: its architecture {architecture or '(none)'} has none of the tasks {', '.join(TASKS)}; "
        f"name one, as hf:{path.name}@sentence-embedding"
    )


def _weights(path: Path) -> tuple[Path, ...]:
    for name in WEIGHTS:
        if (path / name).is_file():
            return (path / name,)
        index = path / f"{name}.index.json"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            if not isinstance(parts, dict) or not all(isinstance(p, str) for p in parts.values()):
                raise SourceError(f"{index}: holds no weight_map")
            for part in sorted(set(parts.values())):
                if not re.fullmatch(r"[\w.-]+", part) or Path(part).suffix != Path(name).suffix:
                    raise SourceError(f"{index}: names {part[:60]!r}, which is no file of weights beside it")
                if not (path / part).is_file():
                    raise SourceError(f"{path / part}: no such file; {index.name} names it")
            return tuple(path / part for part in sorted(set(parts.values())))
    return ()


def _pooling(path: Path) -> tuple[str, bool]:
    """Return pooling and normalisation as `modules.json` lists them; the mean, normalised, where there is none."""
    if not (path / "modules.json").is_file():
        return "mean", True
    try:
        modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
        kinds = {str(m["type"]).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}/modules.json: cannot be understood") from error
    strange = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if strange:
        raise SourceError(f"{path}/modules.json: a {strange[0]} module is not known; known: Pooling, Normalize")
    place = kinds.get("Pooling", "1_Pooling")
    if not re.fullmatch(r"\w*", place):
        raise SourceError(f"{path}/modules.json: names {place[:60]!r}, which is no folder of it")
    own = read_json(path / place / "config.json", optional=True)
    prefix = "pooling_mode_"
    modes = [own["pooling_mode"]] if isinstance(own.get("pooling_mode"), str) else []
    modes += [k.removeprefix(prefix) for k, v in own.items() if k.startswith(prefix) and v is True]
    known = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "max_tokens": "max", "max": "max"}
    if len(modes) > 1 or any(m not in known for m in modes):
        raise SourceError(f"{path / place}/config.json: pooling by {' and '.join(modes)} is not known")
    return known[modes[0]] if modes else "mean", "Normalize" in kinds


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        value = value.get("shortest_edge") or (value.get("height"), value.get("width"))
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, int) and v > 0 for v in value):
        raise SourceError(f"the folder's image size {value!r} is none")
    return value[0], value[1]


def _numbers(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, int | float) for v in values):
        raise SourceError(f"preprocessor_config.json: {value!r} are no numbers")
    return tuple(float(v) for v in values)


assert set(TASKS) <= set(get_args(Task))
