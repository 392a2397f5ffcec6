"""Texts to token ids, as the model card's tokenizer does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeopt.core.card import Preprocess
from edgeopt.core.errors import DataError, MissingBackendError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.data.source import Array, digest

try:
    from tokenizers import Encoding, Tokenizer
except ImportError as error:
    raise MissingBackendError("tokenizers", "text") from error

PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TextEncoder:
    """Turns one text into the inputs of a text model: `input_ids`, `attention_mask`, `token_type_ids`.

    Each is `[length]`; texts are cut or padded to the model's fixed length, or to `preprocess.max_length` where the
    model leaves it open. `identity` is a digest of the tokenizer.
    """

    def __init__(self, settings: Preprocess, inputs: tuple[TensorSpec, ...], base: Path) -> None:
        """Load the tokenizer, whose path is relative to `base`.

        Raises:
            UsageError: the card has no tokenizer, or an input is none that a tokenizer fills.
            DataError: the tokenizer's file cannot be read.
        """
        if settings.tokenizer is None:
            raise UsageError("texts need preprocess.tokenizer (a tokenizer.json) in the model card")
        for spec in inputs:
            if spec.name not in TEXT_INPUTS or len(spec.shape) != 2 or np.dtype(spec.dtype).kind not in "iufb":
                raise UsageError(
                    f"input {spec.name!r} of shape {list(spec.shape)} cannot be filled from text; "
                    f"a tokenizer gives {', '.join(TEXT_INPUTS)}, each [batch, length]"
                )
        self.inputs = inputs
        self.length = _length(settings, inputs)
        self._tokenizer, self.identity = _load(base / settings.tokenizer)
        self._tokenizer.enable_truncation(self.length)
        token, identity = _padding(self._tokenizer)
        self._tokenizer.enable_padding(length=self.length, pad_id=identity, pad_token=token)

    def text(self, text: str, where: str) -> dict[str, Array]:
        """Return the inputs made of one text.

        Raises:
            DataError: the tokenizer refuses it, or a token's id exceeds the input's dtype.
        """
        try:
            encoding: Encoding = self._tokenizer.encode(text)
        except Exception as error:  # tokenizers raises no narrower type
            raise DataError(f"{where}: the tokenizer refuses the text: {error}") from error
        fields = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        return {spec.name: _array(fields[spec.name], spec, where) for spec in self.inputs}


def _array(values: list[int], spec: TensorSpec, where: str) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu" and max(values) > np.iinfo(dtype).max:
        raise DataError(f"{where}: token id {max(values)} does not fit input {spec.name!r} of dtype {spec.dtype}")
    return np.asarray(values, np.int64).astype(dtype)


def _length(settings: Preprocess, inputs: tuple[TensorSpec, ...]) -> int:
    fixed = {spec.shape[1] for spec in inputs} - {-1}
    if len(fixed) > 1:
        raise UsageError(f"the model's text inputs differ in length: {', '.join(map(str, sorted(fixed)))}")
    length = fixed.pop() if fixed else settings.max_length
    if "max_length" in settings.model_fields_set and settings.max_length != length:
        raise UsageError(
            f"model card: preprocess.max_length is {settings.max_length}, but the model takes {length} tokens"
        )
    return length


def _load(path: Path) -> tuple[Tokenizer, str]:
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; the model card's preprocess.tokenizer names it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error}") from error
    try:
        return Tokenizer.from_str(content), digest(content)
    except Exception as error:  # tokenizers raises no narrower type
        raise DataError(f"{path}: not a tokenizer.json of the tokenizers library: {error}") from error


def _padding(tokenizer: Tokenizer) -> tuple[str, int]:
    """Return the padding token and its id: the tokenizer's own, else the usual names, else id 0."""
    if tokenizer.padding is not None:
        return tokenizer.padding["pad_token"], tokenizer.padding["pad_id"]
    for token in PAD_TOKENS:
        identity = tokenizer.token_to_id(token)
        if identity is not None:
            return token, identity
    return "", 0
