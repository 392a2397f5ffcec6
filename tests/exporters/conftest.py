from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeopt import plugins
from edgeopt.bench.parity import THRESHOLDS, compare
from edgeopt.core.artifact import Export, Parity
from edgeopt.core.errors import ArtifactError, ConversionError
from edgeopt.core.formats import FORMATS
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import coreml_arithmetic
from edgeopt.tasks.execute import execute
from edgeopt.tasks.prepare import prepare
from edgeopt.tasks.quantize import quantize

torch.set_num_threads(1)

MODELS = {
    "conv": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        x = nn.functional.relu6(self.bn(self.stem(image)))
        x = x + nn.functional.hardswish(self.dw(nn.functional.pad(x, (0, 1, 0, 1))[:, :, :-1, :-1]))
        return self.head(x.mean((2, 3)))
""",
    "two_inputs_dict_output": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.text = nn.Linear(6, 4)

    def forward(self, image, features):
        gate = torch.sigmoid(self.text(features))
        mixed = self.image(image) * gate[:, :, None, None]
        return {"score map": mixed.amax(1, keepdim=True), "gate": gate, "pooled": mixed.mean((2, 3))}
""",
    "tokens_through_attention": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)

    def forward(self, tokens, mask):
        x = self.norm(self.table(tokens))
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        weight = mask[:, :, None].float()
        return self.out(nn.functional.gelu((x * weight).sum(1) / weight.sum(1).clamp(min=1)))
""",
    "sequential_batch_of_three": """
def Net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 3), nn.Softmax(1))
""",
    "channels_last_parameters": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.to(memory_format=torch.channels_last)

    def forward(self, image):
        x = nn.functional.silu(self.down(image))
        wide = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        return torch.cat([self.up(x), wide], 1), x.flatten(1).argmax(1)
""",
}
OTHERS = {
    "odd_names": """
class Net(nn.Module):
    def forward(self, a, b, c, d, e):
        return {"class": a + b, "1st": c * d, "x y": e + 1, "x.y": e - 1, "_x_y": e.flatten(1)}
""",
    "names_of_weights": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("boxes", torch.randn(1, 3, 12, 12))
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.add = nn.Parameter(torch.randn(3, 12, 12))
        self.table = nn.Linear(12, 12, bias=False)

    def forward(self, image, scale):
        x = image * self.scale + self.boxes * scale
        return {"boxes": x, "add": self.table(x) + self.add, "mul": x.flatten(1), "linear": torch.relu(x)}
""",
    "residual": """
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.depth = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)
        self.project = nn.Conv2d(4 * channels, channels, 1)
        with torch.no_grad():
            self.expand.weight *= 3
            self.depth.weight *= 4

    def forward(self, x):
        return x + self.project(nn.functional.relu6(self.depth(nn.functional.relu6(self.expand(x)))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(3)), nn.Conv2d(8, 12, 1), *(Block(12) for _ in range(3)))
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        return self.head(nn.functional.relu(self.blocks(self.stem(image))).permute(0, 2, 3, 1))
""",
    "median": """
class Net(nn.Module):
    def forward(self, image):
        return image.median(1)[0]
""",
}
IMAGE = "{name: image, shape: [1, 3, 12, 12]}"
TOKENS = "{name: tokens, shape: [1, 7], dtype: int64}, {name: mask, shape: [1, 7], dtype: int64}"
ODD_NAMES = ("input.1", "class", "self", "x, y=open('pwned', 'w')", "495")
INPUTS = {
    "odd_names": ", ".join(f"{{name: {json.dumps(name)}, shape: [1, 3, 4, 4]}}" for name in ODD_NAMES),
    "names_of_weights": f"{IMAGE}, {{name: scale, shape: [1, 1, 1, 1]}}",
    "residual": "{name: image, shape: [1, 3, 64, 64]}",
    "two_inputs_dict_output": f"{IMAGE}, {{name: features, shape: [1, 6]}}",
    "tokens_through_attention": TOKENS,
    "sequential_batch_of_three": "{name: image, shape: [3, 3, 12, 12]}",
}


@dataclass(frozen=True)
class Prepared:
    """A model as `convert` hands it to the exporters."""

    name: str
    folder: Path
    record: dict[str, Any]
    quantized: Path | None  # a folder

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(s) for s in self.record["model"]["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(s) for s in self.record["model"]["outputs"])


@dataclass(frozen=True)
class Made:
    export: Export
    path: Path
    parity: Parity
    outputs: Path  # a folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """Load and export a model once, with its reference outputs on noise, which serves as calibration data too."""
    kept: dict[str, Prepared] = {}

    def get(name: str, static: str | None = None) -> Prepared:
        key = f"{name}-{static}"
        if key not in kept:
            folder = tmp_path_factory.mktemp(name)
            factory = "def build():\n    torch.manual_seed(0)\n    return Net()\n"
            (folder / "net.py").write_text(f"import torch\nfrom torch import nn\n{(MODELS | OTHERS)[name]}\n{factory}")
            (folder / "card.yaml").write_text(f"source: net.py:build\ninputs: [{INPUTS.get(name, IMAGE)}]\n")
            work = folder / "work"
            work.mkdir()
            record = prepare(
                source=str(folder / "card.yaml"),
                arch=None,
                trust=False,
                shapes=[],
                data=None,
                samples=7,
                calibration_samples=0,
                must_calibrate=False,
                folder=str(work),
            )
            execute(
                runtime="torch",
                artifact=str(work / "program.pt2"),
                inputs=record["model"]["inputs"],
                outputs=record["model"]["outputs"],
                inputs_folder=str(work / "inputs"),
                folder=str(work / "reference"),
                options={"threads": 1},
            )
            quantized = None
            if static is not None:
                (work / "calibration").symlink_to(work / "inputs")
                quantized = folder / "quantized"
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PyTorch's own, when a program's module is copied
                    quantize(
                        program=str(work / "program.pt2"),
                        inputs=record["model"]["inputs"],
                        task="generic",
                        calibration=str(work / "calibration"),
                        out=str(quantized),
                        precision=static,
                        options={},
                    )
            kept[key] = Prepared(name, work, record, quantized)
        return kept[key]

    return get


@pytest.fixture(scope="session")
def make(format_worker, prepared) -> Callable[..., Made]:
    """Export one model in one format and precision, run it and compare it, as `convert` does; kept for the session."""
    kept: dict[tuple[Any, ...], Made] = {}

    def make(name: str, form: str, precision: str = "fp32", **options: Any) -> Made:
        key = (name, form, precision, *sorted(options.items()))
        if key in kept:
            return kept[key]
        static = precision.startswith("static")
        model = prepared(name, precision if static else None)
        description = FORMATS[form]
        stem = "-".join(str(part) for part in (form, precision, *options.values()))
        path = model.folder / f"{stem}{description.suffix}"
        program = model.folder / "program.pt2"
        if model.quantized is not None:
            program = model.quantized / ("quantized.pt2" if description.lowers_quantized_graph else "conditioned.pt2")
        request = {
            "name": name,
            "program": str(program),
            "inputs": model.record["model"]["inputs"],
            "outputs": model.record["model"]["outputs"],
            "precision": precision,
            "out": str(path),
            "calibration": str(model.folder / "calibration") if static else None,
            "ranges": str(model.quantized / "ranges.json") if model.quantized else None,
            **options,
        }
        log = model.folder / f"{stem}.log"
        record = format_worker(form).call(
            "edgeopt.tasks.export:export",
            {"format_name": form, "request": request},
            what=f"{form} export of {name}",
            log=log,
            failure=ConversionError,
        )
        outputs = model.folder / f"{stem}-outputs"
        ran = format_worker(form).call(
            "edgeopt.tasks.execute:execute",
            {
                "runtime": description.runtime,
                "artifact": str(path),
                "inputs": request["inputs"],
                "outputs": request["outputs"],
                "inputs_folder": str(model.folder / "inputs"),
                "folder": str(outputs),
                "options": {"precision": coreml_arithmetic(precision)} if form == "coreml" else {},
            },
            what=f"running {path.name}",
            log=log,
            failure=ArtifactError,
        )
        parity = compare(
            model.folder / "reference",
            outputs,
            model.outputs,
            samples=7,
            labels=(),
            task="generic",
            runtime=ran["runtime"],
            inputs="random",
            threshold=THRESHOLDS[precision],
        )
        kept[key] = Made(Export.from_json(record), path, parity, outputs)
        return kept[key]

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, values in (("form", plugins.names("exporters")), ("model", list(MODELS))):
        own = any(name in str(m.args[0]) for m in metafunc.definition.iter_markers("parametrize"))
        if name in metafunc.fixturenames and not own:
            metafunc.parametrize(name, values)
