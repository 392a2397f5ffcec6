"""Lets torchvision be imported beside a PyTorch that its compiled operators were not built for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

_kept: list[torch.library.Library] = []


def import_torchvision() -> None:
    """Import torchvision where it is installed, with the two operators it insists on registered if they are missing.

    timm and ultralytics import torchvision, whose wheels fit one build of PyTorch only: beside a CPU build the import
    fails for want of `nms` and `qnms`, which exporting a model never calls.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except (RuntimeError, OSError):
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _kept.append(library)  # its operators end with it
        import_module("torchvision")
