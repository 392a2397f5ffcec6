"""What users name is loaded, or refused in one line that says what to do."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from edgeopt.core.errors import EdgeoptError, MissingBackendError, SourceError, UsageError
from edgeopt.sources.request import understand

SHAPE = ((1, 1, 8, 8),)
PARAMETERS = 4 * 9 + 4 + 144 * 5 + 5


def test_code(load, arch):
    assert load(f"{arch}:build", shapes=SHAPE)["parameters"] == PARAMETERS


@pytest.mark.parametrize("name", ["net.pt", "w.pth", "net.safetensors"])
def test_weights_with_their_architecture(load, arch, files, name):
    found = load(files[name], arch=f"{arch}:build", shapes=SHAPE)
    assert found["parameters"] == PARAMETERS


def test_the_same_weights_have_the_same_digest_wherever_they_come_from(load, arch, files):
    digests = {
        load(files[name], arch=f"{arch}:build", shapes=SHAPE)["sha256"]
        for name in ("net.pt", "w.pth", "net.safetensors")
    }
    assert len(digests) == 1
    assert load(f"{arch}:build", shapes=SHAPE)["sha256"] not in digests


@pytest.mark.parametrize("name", ["net.pt2", "dynamic.pt2"])
def test_exported_programs(load, files, name):
    found = load(files[name])
    assert found["parameters"] == PARAMETERS
    assert found["inputs"][0]["shape"] == [1, 1, 8, 8]


def test_a_program_of_open_shapes_takes_those_asked_for(load, files):
    assert load(files["dynamic.pt2"], shapes=((7, 1, 8, 8),))["inputs"][0]["shape"] == [7, 1, 8, 8]


def test_programs_with_arithmetic_on_open_shapes(load, tmp_path):
    class Dynamic(torch.nn.Module):
        def forward(self, x, y):
            z = torch.cat([x, y], 1)
            width = z.shape[1]
            z = z[:, : width // 2 + 3].reshape(x.shape[0], -1)
            shifted = torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))
            scaled = torch.nn.functional.interpolate(z[:, None], scale_factor=1.5)
            return scaled, torch.zeros(max(width, 7)), shifted, z.sum() / width

    auto = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(Dynamic(), (torch.rand(3, 8), torch.rand(3, 6)), dynamic_shapes=(auto, auto))
    torch.export.save(program, tmp_path / "d.pt2")
    found = load(tmp_path / "d.pt2")
    assert [i["shape"] for i in found["inputs"]] == [[1, 8], [1, 6]]


def test_onnx(load, files):
    found = load(files["net.onnx"])
    assert found["inputs"][0]["name"] == "image" and found["parameters"] == PARAMETERS


def test_timm(load, tmp_path):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    assert load("timm:mobilenetv3_small_050")["inputs"][0]["shape"] == [1, 3, 224, 224]
    with pytest.raises(UsageError, match="timm has no model 'mobilnetv3_small_050'; did you mean"):
        load("timm:mobilnetv3_small_050")
    with pytest.raises(UsageError, match=r"none\.safetensors: no such file"):
        load(f"timm:mobilenetv3_small_050@{tmp_path}/none.safetensors")


def test_timm_with_weights_of_another_model(load, files):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with pytest.raises(SourceError, match=r"weights do not fit the architecture: .* missing, first"):
        load(f"timm:mobilenetv3_small_050@{files['net.safetensors']}")


def test_a_card(load, files, arch, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(files["net.safetensors"].read_bytes())
    (tmp_path / "arch.py").write_text(arch.read_text())
    (tmp_path / "card.yaml").write_text(
        "source: w.safetensors\narch: arch.py:build\ninputs: [{name: digit, shape: [2, 1, 8, 8]}]\n"
    )
    found = load(tmp_path / "card.yaml")
    assert found["inputs"][0]["name"] == "digit" and found["inputs"][0]["shape"] == [2, 1, 8, 8]


@pytest.mark.parametrize("where", ["absolute", "above", "link", "arch"])
def test_a_cards_code_outside_its_folder_is_refused_without_trust(load, arch, files, tmp_path, where):
    folder = tmp_path / "card"
    folder.mkdir()
    (tmp_path / "arch.py").write_text(arch.read_text())
    inputs = "inputs: [{shape: [1, 1, 8, 8]}]\n"
    if where == "absolute":
        text = f"source: {arch}:build\n"
    elif where == "above":
        text = "source: ../arch.py:build\n"
    elif where == "link":
        (folder / "arch.py").symlink_to(arch)
        text = "source: arch.py:build\n"
    else:
        (folder / "w.pt").write_bytes(files["net.pt"].read_bytes())
        text = f"source: w.pt\narch: {arch}:build\n"
    (folder / "card.yaml").write_text(text + inputs)
    with pytest.raises(UsageError, match="outside the card's folder; --trust-source allows it"):
        load(folder / "card.yaml")
    assert load(folder / "card.yaml", trust=True)["parameters"] == PARAMETERS


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing.onnx", "no such file"),
        ("nothing.yaml", "no such file"),
        ("nothing.py:build", "no such file"),
        (".", "is a folder; name the model's card or file in it"),
        ("model.keras", "no such file"),
        ("arch.py", r"name the function that builds the model too, as arch\.py:build"),
        ("tim:resnet18", "unknown source prefix 'tim'; did you mean 'timm'"),
        ("notes.txt", "not a model that edgeopt reads; known: "),
        ("card.yaml", "is a card itself"),
        ("", "is a folder"),
    ],
)
def test_names_that_are_no_model(tmp_path, name, told):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "arch.py").write_text("x")
    (tmp_path / "card.yaml").write_text("source: other.yaml\n")
    with pytest.raises(UsageError, match=told) as caught:
        understand(name, folder=tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        ("def other(): pass", SourceError, "has no function 'build'"),
        ("def build(: pass", SourceError, "SyntaxError"),
        ("raise RuntimeError('boom')", SourceError, "RuntimeError: boom"),
        ("def build(): raise KeyError('x')", SourceError, "KeyError: 'x'"),
        ("def build(): return None.weight", SourceError, "AttributeError: 'NoneType'"),
        ("def build(): return 3", SourceError, "returned int, not an nn.Module"),
        ("def build(needed): pass", SourceError, "TypeError: .*needed"),
        ("build = 3", SourceError, "not callable"),
        ("import sys\ndef build(): sys.exit(2)", SourceError, "SystemExit: 2"),
        ("import coremltols_of_mine", SourceError, "No module named 'coremltols_of_mine'"),
        ("import transformers_is_not_here", SourceError, "transformers_is_not_here"),
    ],
)
def test_what_a_factory_can_get_wrong(load, tmp_path, code, error, told):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(error, match=told) as caught:
        load(f"{tmp_path}/mine.py:build", shapes=SHAPE)
    assert len(str(caught.value).splitlines()) == 1 and "mine.py" in str(caught.value)


def test_a_package_that_an_extra_brings_is_named(load, tmp_path):
    (tmp_path / "mine.py").write_text("raise ModuleNotFoundError('x', name='timm.layers')")
    with pytest.raises(MissingBackendError, match=r'timm is not installed: pip install "edgeopt\[timm\]"'):
        load(f"{tmp_path}/mine.py:build", shapes=SHAPE)


def test_what_a_factory_prints_stays_in_the_log(load, tmp_path, capfd, arch):
    (tmp_path / "mine.py").write_text("print('NOISE')\nimport os\nos.system('echo LOUD')\n" + arch.read_text())
    load(f"{tmp_path}/mine.py:build", shapes=SHAPE)
    shown = capfd.readouterr()
    assert "NOISE" not in shown.out + shown.err and "LOUD" not in shown.out + shown.err
    assert "LOUD" in (tmp_path / "model.log").read_text()


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ((), "does not tell its input shape: give --input-shape"),
        (((1, 3, 8, 8),), "does not run on input .*check the shapes"),
        (((1, 1, 8, 8), (1, 2)), r"does not run on|has 1 inputs, --input-shape gives 2"),
        (((1, 1, 1, 1),), "does not run on"),
    ],
)
def test_wrong_shapes(load, arch, shapes, told):
    with pytest.raises(EdgeoptError, match=told) as caught:
        load(f"{arch}:build", shapes=shapes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("return [torch.ones(1), 'text']", "returns str among its outputs, not only tensors"),
        ("return None", "returns no tensor|returns NoneType"),
        ("return {}", "returns no tensor"),
        ("return x if x.sum() > 0 else x + 1", "torch.export cannot capture it"),
    ],
)
def test_modules_that_cannot_be_exported(load, tmp_path, code, told):
    (tmp_path / "mine.py").write_text(
        f"import torch\nclass M(torch.nn.Module):\n    def forward(self, x):\n        {code}\ndef build(): return M()\n"
    )
    with pytest.raises(SourceError, match=told) as caught:
        load(f"{tmp_path}/mine.py:build", shapes=SHAPE)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_do_not_fit(load, arch, net, tmp_path):
    def check(told, **weights):
        torch.save(weights, tmp_path / "w.pt")
        with pytest.raises(SourceError, match=told):
            load(tmp_path / "w.pt", arch=f"{arch}:build", shapes=SHAPE)

    own = net.state_dict()
    check("1 missing, first head.bias", **{k: v for k, v in own.items() if k != "head.bias"})
    check("1 unknown, first extra", **own, extra=torch.ones(1))
    check(
        r"head.bias has shape \[6\], the architecture wants \[5\]",
        **{**own, "head.bias": torch.ones(6)},
    )
    check("holds no state dict", epoch=3)
    check("holds no state dict", model={"nested": {"deeper": 1}})


def test_weights_without_an_architecture(load, files):
    for name in ("net.pt", "w.pth", "net.safetensors"):
        with pytest.raises(UsageError, match=r"holds weights only: name their architecture with --arch"):
            load(files[name], shapes=SHAPE)
    with pytest.raises(UsageError, match=r"expected file\.py:factory"):
        load(files["net.pt"], arch="resnet18", shapes=SHAPE)


def test_programs_differing_only_in_what_is_no_weight_are_told_apart(tmp_path):
    """The cache keys on this digest: constants and buffers outside the state dict count."""
    from edgeopt.tasks.prepare import prepare

    code = """
import torch

class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("hidden", torch.full((3,), {buffer}), persistent=False)
        self.plain = torch.full((3,), {constant})
        self.fc = torch.nn.Linear(3, 3)
        torch.nn.init.ones_(self.fc.weight)
        torch.nn.init.ones_(self.fc.bias)

    def forward(self, x):
        return self.fc(x) * self.hidden + self.plain * {scalar}

def build():
    return M()
"""

    def digest(**values):
        folder = tmp_path / "-".join(map(str, values.values()))
        folder.mkdir(exist_ok=True)
        (folder / "m.py").write_text(code.format(**values))
        work = folder / f"work{len(list(folder.iterdir()))}"
        work.mkdir()
        return prepare(
            source=f"{folder}/m.py:build",
            arch=None,
            trust=False,
            shapes=[[1, 3]],
            data=None,
            samples=1,
            calibration_samples=0,
            must_calibrate=False,
            folder=str(work),
        )["program_sha256"]

    base = {"buffer": 1.0, "constant": 2.0, "scalar": 3.0}
    first = digest(**base)
    assert digest(**base) == first
    assert len({first, *(digest(**{**base, name: 5.0}) for name in base)}) == 4
