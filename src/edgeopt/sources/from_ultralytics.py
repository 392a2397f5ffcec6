"""`yolo:FILE.pt`, `yolo:NAME.yaml`, or a `.pt` file of ultralytics: detection, segmentation, pose, classes.

ultralytics is licensed under AGPL-3.0; this module alone imports it, and only when such a model is named.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import yaml

from edgeopt.core.errors import EdgeoptError, SourceError, UnsafeFileError, UsageError
from edgeopt.core.model import TensorSpec
from edgeopt.core.settings import refuse_expansion
from edgeopt.sources.archives import refuse_bombs
from edgeopt.sources.request import Loaded, SourceRequest
from edgeopt.sources.torchvision_ops import import_torchvision

# Read once, when ultralytics is imported: it must install, download and report nothing, and evaluate no text of a file.
os.environ |= {"YOLO_AUTOINSTALL": "0", "YOLO_OFFLINE": "1", "YOLO_VERBOSE": "0", "ULTRALYTICS_SAFE_LOAD": "1"}
import_torchvision()

with tempfile.TemporaryDirectory() as _settings:
    os.environ["YOLO_CONFIG_DIR"] = _settings
    import ultralytics
    from ultralytics.nn import tasks
    from ultralytics.nn.modules.head import OBB, Classify, Detect, Pose, Segment

TASKS = {
    "detect": ("object-detection", "DetectionModel"),
    "segment": ("instance-segmentation", "SegmentationModel"),
    "pose": ("pose-estimation", "PoseModel"),
    "classify": ("image-classification", "ClassificationModel"),
}
IMAGE_SIZE = {"classify": 224}
MAX_YAML_BYTES = 2**20
MAX_UNPACKED_BYTES = 16 * 2**30
MAX_DEPTH = 100
DOWNLOADS = ("TorchVision",)
"""Layers that fetch weights when they are built."""


class Network(torch.nn.Module):
    """A network in export mode: image `[batch, 3, height, width]` of 0 to 1 to separate tensors.

    `boxes` `[batch, 4, anchors]` (left, top, right, bottom in pixels of the input), `scores`
    `[batch, classes, anchors]`, and `masks` with `prototypes`, or `keypoints`. Boxes and scores
    are apart, unlike in ultralytics' own export: in one quantized tensor the boxes' range would leave nothing of the
    scores.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in their order."""
        flat, _ = torch.utils._pytree.tree_flatten(self.model(image))
        return tuple(flat)


def load(request: SourceRequest) -> Loaded:
    """Load a checkpoint, or build a configuration with random weights (said in `notes`).

    Raises:
        UsageError: no such file or configuration, or a shape that the network cannot take.
        UnsafeFileError: the checkpoint's pickle holds something else than ultralytics' classes and tensors.
        SourceError: a damaged file, or one of another task.
    """
    notes: tuple[str, ...] = ()
    if request.location.endswith((".yaml", ".yml")):
        model, name = _from_yaml(request)
        notes = (f"{request.name} has random weights: {name} describes the architecture only",)
    else:
        model = _from_checkpoint(request)
    task = getattr(model, "task", None) or tasks.guess_model_task(model)
    head = model.model[-1]
    if task not in TASKS or isinstance(head, OBB) or not isinstance(head, Detect | Classify):
        raise SourceError(f"{request.spoken}: {type(head).__name__} heads are not supported; known: {', '.join(TASKS)}")
    size = _size(model, task, request)
    with _quiet(f"{request.spoken}: ultralytics cannot prepare it"):
        network = Network(_exportable(model, torch.zeros(1, size[1], *size[2:])))
    spec = TensorSpec("image", size, "float32", "NCHW")
    return Loaded(network, (spec,), (), _card(model, task, head, size), notes, shaped=True)


def _from_checkpoint(request: SourceRequest) -> Any:
    path = (request.folder / request.location).resolve()
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix != ".pt":
        raise UsageError(f"{path}: not a checkpoint of ultralytics; they end in .pt or .yaml")
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(archive, path, MAX_UNPACKED_BYTES)
            if damaged := archive.testzip():
                raise SourceError(f"{path}: damaged: the checksum of {damaged} does not match")
            names = archive.namelist()
        if any(".." in Path(n).parts or n.startswith("/") for n in names):
            raise UnsafeFileError(f"{path}: an archive whose members lie outside of it")
        with _quiet(f"{path}: ultralytics cannot read it"):
            found, _ = tasks.torch_safe_load(str(path), safe_only=not request.trust)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise SourceError(f"{path}: not a checkpoint of ultralytics, or a damaged one") from error
    model = found.get("ema") or found.get("model")
    if not isinstance(model, tasks.BaseModel):
        raise SourceError(f"{path}: holds no network of ultralytics {ultralytics.__version__}")
    return model


def _from_yaml(request: SourceRequest) -> tuple[Any, str]:
    path = request.folder / request.location
    if not path.is_file():
        path = _shipped(request)
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise SourceError(f"{path}: is larger than {MAX_YAML_BYTES >> 20} MiB")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        refuse_expansion(document, str(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as YAML") from error
    if not isinstance(document, dict) or not {"backbone", "head"} <= set(document):
        raise SourceError(f"{path}: not a model of ultralytics (no backbone and head)")
    document["scale"] = tasks.guess_model_scale(Path(request.location).name)
    with _quiet(f"{path}: ultralytics cannot build it"):
        rows = document["backbone"] + document["head"]
        for _, repeats, layer, _ in rows:
            if layer in DOWNLOADS or "torchvision" in layer or not 0 < repeats <= MAX_DEPTH:
                raise SourceError(f"{path}: a layer {layer} repeated {repeats} times is not built")
        task = tasks.guess_model_task(document)
        if task not in TASKS:
            raise SourceError(f"{path}: task {task} is not supported; known: {', '.join(TASKS)}")
        return getattr(tasks, TASKS[task][1])(document, ch=document.get("channels", 3), verbose=False), path.name


def _shipped(request: SourceRequest) -> Path:
    """Return the configuration of that name inside the package; a letter behind the version is the size."""
    wanted = Path(request.location).name
    plain = re.sub(r"(\d+)[nslmx](?=[-.])", r"\1", wanted)
    root = Path(ultralytics.__file__).parent / "cfg" / "models"
    for path in sorted(root.glob("*/*.yaml")):
        if path.name in (wanted, plain):
            return path
    raise UsageError(f"{request.spoken}: no such file, and ultralytics {ultralytics.__version__} has no {wanted}")


def _size(model: Any, task: str, request: SourceRequest) -> tuple[int, ...]:
    """Return the input's shape: as asked for, the card's, or the size that the checkpoint was trained at."""
    shapes = request.shapes or tuple(i.shape for i in request.card.inputs)
    stride = int(max(getattr(model, "stride", torch.tensor([32]))))
    channels = int(model.yaml.get("channels", 3))
    if not shapes:
        own = (getattr(model, "args", None) or {}).get("imgsz")
        side = own if isinstance(own, int) and 0 < own <= 4096 else IMAGE_SIZE.get(task, 640)
        side = -(-side // stride) * stride
        return 1, channels, side, side
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != channels:
        raise UsageError(f"{request.spoken} has one input, [batch, {channels}, height, width]")
    if task != "classify" and (shapes[0][2] % stride or shapes[0][3] % stride):
        raise UsageError(f"{request.spoken}: height and width must be multiples of its stride, {stride}")
    return shapes[0]


def _exportable(model: Any, example: torch.Tensor) -> Any:
    """Return the network fused and in export mode, its decoded outputs apart."""
    model = copy.deepcopy(model).float().eval()
    layer: Any
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.model[-1]
    if isinstance(head, Detect) and head.end2end and head.cv2 is not None:
        head.end2end = False  # its top-k would reorder detections whose scores nearly tie
    model = model.fuse(verbose=False) if isinstance(head, Detect) else model
    head = model.model[-1]
    for layer in model.modules():
        if isinstance(layer, Detect | Classify):
            layer.export, layer.format, layer.dynamic = True, "onnx", False
        if isinstance(layer, Detect):
            layer.shape, layer.xyxy = None, True
        if hasattr(layer, "inplace"):
            layer.inplace = False
    if isinstance(head, Detect) and not head.end2end:
        setattr(head, "_inference", MethodType(_decoded, head))  # noqa: B010 - a method is put in its place
    with torch.no_grad():
        model(example)  # computes the anchors, which are constants of the graph from then on
    return model


def _decoded(head: Any, raw: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    outputs = (head._get_decode_boxes(raw), raw["scores"].sigmoid())
    if isinstance(head, Segment):
        return (*outputs, raw["mask_coefficient"])
    return (*outputs, head.kpts_decode(raw["kpts"])) if isinstance(head, Pose) else outputs


def _card(model: Any, task: str, head: Any, size: tuple[int, ...]) -> dict[str, Any]:
    height, width = size[2:]
    outputs: tuple[str, ...] = ("probabilities",)
    preprocess: dict[str, Any] = {"scale": 1 / 255}
    if isinstance(head, Detect):
        preprocess["letterbox"] = (height, width)
        outputs = ("detections",) if head.end2end else ("boxes", "scores")
        extra = {"segment": ("prototypes",) if head.end2end else ("masks", "prototypes")}
        if not head.end2end:
            extra["pose"] = ("keypoints",)
        outputs += extra.get(task, ())
    elif height == width:
        preprocess |= {"resize": height, "crop": height}
    else:
        preprocess["resize"] = (height, width)
    names = getattr(model, "names", None) or {}
    labels = tuple(str(n) for n in (names.values() if isinstance(names, dict) else names))
    card = {"task": TASKS[task][0], "outputs": outputs, "preprocess": preprocess}
    told = len(set(labels)) == len(labels) and labels != tuple(str(i) for i in range(len(labels)))
    return card | ({"labels": labels} if labels and told else {})


@contextlib.contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Keep ultralytics' words in the log, and tell its errors, of any type, in one line."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    except EdgeoptError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        plain = reason.encode("ascii", "ignore").decode().removeprefix("ERROR  ")[:200]
        if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
            raise UnsafeFileError(
                f"{what}: it holds more than ultralytics' own classes and tensors, and could run code; "
                "--trust-source allows it if you trust whoever made it"
            ) from error
        raise SourceError(f"{what}: {type(error).__name__}: {plain}") from error
