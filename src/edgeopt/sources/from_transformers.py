"""`hf:FOLDER`, or a folder with a `config.json`: a Hugging Face transformers model, from local files only.

Nothing is downloaded and no code of the folder runs: the classes are those of the installed transformers package, the
weights are safetensors or pickles of tensors alone.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from edgeopt.core.errors import EdgeoptError, SourceError, UnsafeFileError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.sources.from_weights import read_checkpoint, read_safetensors, state_dict_in
from edgeopt.sources.request import Loaded, SourceRequest
from edgeopt.sources.text_model import ImageModel, TextModel, fits_additive_mask
from edgeopt.sources.torchvision_ops import import_torchvision
from edgeopt.sources.transformers_folder import Folder, open_folder

import_torchvision()

import transformers  # noqa: E402 - it imports torchvision, which must be made importable first
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

AUTO = {
    "generic": "AutoModel",
    "sentence-embedding": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
}
OUTPUTS = {
    "generic": ("last_hidden_state",),
    "sentence-embedding": ("sentence_embedding",),
    "question-answering": ("start_logits", "end_logits"),
}
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MASKED_TOKENS = 3


def load(request: SourceRequest) -> Loaded:
    """Build the model of the folder's configuration and put its weights in; without any they are random, as noted.

    Raises:
        UsageError: no such folder or task, or a shape that the model cannot take.
        SourceError: a damaged or unknown configuration, or weights that do not fit it.
        UnsafeFileError: the model needs code that the folder carries, or a pickle that holds more than tensors.
    """
    folder = open_folder(request)
    config = _configuration(folder)
    model, notes = _model(folder, config, request)
    if folder.task == "image-classification":
        return _image_model(folder, config, model, request, notes)
    names = _input_names(folder, model, config, request)
    length = _length(folder, config, request, names)
    specs = tuple(TensorSpec(name, length, "int64") for name in names)
    pooling = folder.pooling if folder.task == "sentence-embedding" else None
    wrapped = TextModel(model, names, len(OUTPUTS.get(folder.task, ("",))), pooling, folder.normalize, True)
    tokens = _tokens(specs, config)
    if not fits_additive_mask(wrapped, tokens):
        wrapped.additive = False
        notes = (*notes, "takes no additive mask: its own holds the lowest float, which half precision cannot")
    options = folder.text_card(length[1], OUTPUTS.get(folder.task, ("logits",)))
    return Loaded(wrapped.eval(), specs, (), options, notes, shaped=True)


def _configuration(folder: Folder) -> Any:
    kind = str(folder.config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        if "auto_map" in folder.config:
            raise UnsafeFileError(
                f"{folder.path}: its model type {kind!r} needs code that the folder carries, which edgeopt never runs; "
                "load it in a file.py:factory of yours"
            )
        raise SourceError(f"{folder.path}/config.json: transformers {transformers.__version__} has no type {kind!r}")
    own = {k: v for k, v in folder.config.items() if k not in ("auto_map", "_attn_implementation")}
    return _guarded(lambda: CONFIG_MAPPING[kind].from_dict(own), f"{folder.path}/config.json: cannot be understood")


def _model(folder: Folder, config: Any, request: SourceRequest) -> tuple[torch.nn.Module, tuple[str, ...]]:
    auto = getattr(transformers, AUTO[folder.task])
    config.return_dict = True
    config.architectures = config.architectures or []
    if type(config) not in auto._model_mapping:
        raise UsageError(f"{request.spoken}: transformers has no {folder.task} model of type {config.model_type}")
    extra = {"add_pooling_layer": False} if AUTO[folder.task] == "AutoModel" and _pools(auto, config) else {}
    where = f"{folder.path}: transformers cannot build it"
    if not folder.weights:
        model = _guarded(lambda: auto.from_config(config, attn_implementation="eager", **extra), where)
        return model.float(), (f"{request.name} has random weights: its folder holds none",)
    state: dict[str, torch.Tensor] = {}
    for path in folder.weights:
        if path.suffix == ".safetensors":
            state |= read_safetensors(path)
        else:
            state |= state_dict_in(read_checkpoint(path, trust=request.trust), path)

    def build() -> Any:
        with torch.device("meta"):
            kind = type(auto.from_config(config, attn_implementation="eager", **extra))
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **extra,
        )

    model, found = _guarded(build, where)
    missing, mismatched = sorted(found["missing_keys"]), sorted(found["mismatched_keys"], key=str)
    if missing:
        raise SourceError(
            f"{folder.path}: {len(missing)} weights of {type(model).__name__} missing, first {missing[0]}"
        )
    if mismatched:
        raise SourceError(f"{folder.path}: weights do not fit the configuration, first {mismatched[0]}")
    unused = len(found["unexpected_keys"])
    return model, (f"{unused} weights of the folder are not part of the {folder.task} model",) if unused else ()


def _guarded(build: Callable[[], Any], what: str) -> Any:
    """Run a constructor of transformers; it raises any type of error on a configuration that makes no sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()
    except EdgeoptError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SourceError(f"{what}: {type(error).__name__}: {(lines or [''])[0][:200]}") from error


def _pools(auto: Any, config: Any) -> bool:
    kind = auto._model_mapping[type(config)]
    return "add_pooling_layer" in inspect.signature((kind[0] if isinstance(kind, tuple) else kind).__init__).parameters


def _input_names(folder: Folder, model: torch.nn.Module, config: Any, request: SourceRequest) -> tuple[str, ...]:
    takes = [n for n in TEXT_INPUTS if n in inspect.signature(model.forward).parameters]
    if takes[:2] != list(TEXT_INPUTS[:2]):
        raise UsageError(f"{request.spoken}: {type(model).__name__} takes no input_ids with an attention_mask")
    if request.card.inputs:
        named = tuple(i.name for i in request.card.inputs)
        if strange := [n for n in named if n not in takes] or [n for n in TEXT_INPUTS[:2] if n not in named]:
            raise UsageError(f"{request.spoken}: the card's inputs and {strange[0]!r}: it takes {', '.join(takes)}")
        return named
    pairs = folder.task == "question-answering" or len(request.shapes) == 3
    return tuple(takes) if pairs and getattr(config, "type_vocab_size", 0) > 1 else tuple(takes[:2])


def _length(folder: Folder, config: Any, request: SourceRequest, names: tuple[str, ...]) -> tuple[int, int]:
    """Return batch and length of the inputs: as asked for, the card's, or the folder's own up to 128 tokens."""
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        longest -= 2  # positions start behind the padding's
    shapes = set(request.shapes) or {i.shape for i in request.card.inputs} or {(1, folder.length(longest))}
    if len(request.shapes) not in (0, 1, len(names)):
        raise UsageError(f"{request.spoken} has {len(names)} inputs, --input-shape gives {len(request.shapes)}")
    shape = shapes.pop()
    if shapes or len(shape) != 2:
        raise UsageError(f"{request.spoken}: its inputs {', '.join(names)} have one shape, [batch, length]")
    if isinstance(longest, int) and shape[1] > longest:
        raise UsageError(f"{request.spoken} takes at most {longest} tokens, not {shape[1]}")
    return shape[0], shape[1]


def _tokens(specs: tuple[TensorSpec, ...], config: Any) -> tuple[torch.Tensor, ...]:
    """Return inputs with padding, to compare masks on."""
    generator = torch.Generator().manual_seed(0)
    batch, length = specs[0].shape
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, max(1, length - MASKED_TOKENS) :] = 0
    ids = torch.randint(0, max(2, config.vocab_size), (batch, length), generator=generator)
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(values[s.name] for s in specs)


def _image_model(
    folder: Folder, config: Any, model: torch.nn.Module, request: SourceRequest, notes: tuple[str, ...]
) -> Loaded:
    size = folder.image_size(getattr(config, "image_size", None))
    shape = (1, getattr(config, "num_channels", 3), *size)
    if request.shapes or request.card.inputs:
        shapes = request.shapes or tuple(i.shape for i in request.card.inputs)
        if len(shapes) != 1 or len(shapes[0]) != 4:
            raise UsageError(f"{request.spoken} has one input, pixel_values [batch, channels, height, width]")
        shape = shapes[0]
    spec = TensorSpec("pixel_values", shape, "float32", "NCHW")
    return Loaded(ImageModel(model).eval(), (spec,), (), folder.image_card(Path(request.location)), notes, shaped=True)
