"""Where the arrays of a run are kept on disk."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

LABELS = "labels"
PLAIN = re.compile(r"\w[\w.-]{0,99}", re.ASCII)


def array_file(folder: Path | str, tensor: str) -> Path:
    """Return the `.npy` file of a tensor.

    Tensor names come from files of anyone: one that is no plain file name (`../../x`, `/head/Gemm_output_0`, or the
    name that class labels are kept under) is replaced by its digest.
    """
    return Path(folder, f"{plain_name(tensor)}.npy")


def plain_name(tensor: str) -> str:
    """Return the tensor's name, or its digest where the name is not fit for a file."""
    if PLAIN.fullmatch(tensor) and tensor != LABELS:
        return tensor
    return hashlib.sha256(tensor.encode(errors="surrogatepass")).hexdigest()[:40]
