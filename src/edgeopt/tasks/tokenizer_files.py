"""A text model's tokenizer for the bundle, with texts and their token ids to hold an app's own against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgeopt.core.model import Model
from edgeopt.data.sentences import TOKENIZER_TEXTS

BESIDE = "beside"
TOKENIZER = "tokenizer.json"
VECTORS = "tokenizer_test_vectors.json"


def keep_tokenizer(model: Model, base: Path, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json` and `tokenizer_test_vectors.json` to `folder`; returns what changes in preprocessing.

    Args:
        model: nothing is written unless its card has a tokenizer.
        base: that the card's paths start from.
        folder: made if needed.

    Raises:
        DataError: the tokenizer cannot be read.
    """
    name = model.card.preprocess.tokenizer
    if name is None:
        return {}
    from edgeopt.data.text import TextEncoder

    encoder = TextEncoder(model.card.preprocess, model.inputs, base)
    folder.mkdir(exist_ok=True)
    shutil.copyfile(base / name, folder / TOKENIZER)
    vectors = []
    for text in TOKENIZER_TEXTS:
        arrays = encoder.text(text, "a test text")
        vectors.append({"text": text} | {n: a.astype(int).tolist() for n, a in arrays.items()})
    document = {"tokenizer": TOKENIZER, "length": encoder.length, "padding": "right", "vectors": vectors}
    (folder / VECTORS).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"tokenizer": TOKENIZER}
