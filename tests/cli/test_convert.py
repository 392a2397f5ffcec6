"""`edgeopt convert`, as a user meets it; ONNX alone where the format does not matter, since it is the quickest."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

NOISE = re.compile(
    r"warning|onnxscript|torch\.onnx|tensorflow|site-packages|executorch/|cpuinfo|\bINFO\b", re.IGNORECASE
)


@pytest.fixture(scope="module")
def bundle(edgeopt, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "bundle"
    return out, edgeopt("convert", *tiny, "--to", "onnx", "--precision", "fp32,fp16", "--json", "-o", out)


def test_the_manifest_is_printed_and_written(bundle):
    out, ran = bundle
    assert ran.code == 0, ran.err
    assert ran.json == json.loads((out / "manifest.json").read_bytes())
    assert {"model", "artifacts", "failures"} <= set(ran.json)
    assert [a["precision"] for a in ran.json["artifacts"]] == ["fp32", "fp16"] and ran.json["failures"] == []
    for artifact in ran.json["artifacts"]:
        assert {"format", "precision", "path", "size_bytes", "sha256", "inputs", "outputs", "parity"} <= set(artifact)
        assert {"not_quantized", "seconds"} <= set(artifact)
        assert {"runtime", "samples", "snr_db", "cosine", "max_abs", "agreement", "passed"} <= set(artifact["parity"])
        content = (out / artifact["path"]).read_bytes()
        assert artifact["sha256"] == hashlib.sha256(content).hexdigest() and artifact["size_bytes"] == len(content)
        assert artifact["parity"]["runtime"] == "onnxruntime" and artifact["parity"]["passed"]
    fp32 = ran.json["artifacts"][0]
    assert fp32["inputs"] == [{"name": "input", "shape": [1, 1, 8, 8], "dtype": "float32", "layout": "NCHW"}]
    assert fp32["parity"]["snr_db"] >= 100 and fp32["parity"]["samples"] == 32


def test_what_the_converters_print_never_reaches_the_terminal(bundle):
    _, ran = bundle
    assert not NOISE.search(ran.err), ran.err
    assert len(ran.err.splitlines()) < 40


def test_the_second_time_it_is_taken_from_the_cache(bundle, edgeopt, tiny, tmp_path):
    out, first = bundle
    ran = edgeopt("convert", *tiny, "--to", "onnx", "--precision", "fp32,fp16", "--json", "-q", "-o", tmp_path / "b")
    assert ran.code == 0 and ran.err == "", "-q is silent"
    for before, after in zip(first.json["artifacts"], ran.json["artifacts"], strict=True):
        assert after["cached"] and not before["cached"]
        assert (out / before["path"]).read_bytes() == (tmp_path / "b" / after["path"]).read_bytes()
        assert after["inputs"] == before["inputs"] and after["parity"]["snr_db"] == before["parity"]["snr_db"]


@pytest.mark.parametrize("precision", ["fp32", "weight_only_wi8_afp32"])
def test_a_model_of_the_same_name_and_shape_is_another_model(fresh_edgeopt, tmp_path, precision):
    source = """
import torch
from torch import nn

def build():
    torch.manual_seed({seed})
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
"""
    sums = []
    for seed in (0, 1, 0):
        (tmp_path / "net.py").write_text(source.format(seed=seed))
        model = [f"{tmp_path / 'net.py'}:build", "--input-shape", "1,1,8,8"]
        out = tmp_path / f"bundle-{len(sums)}"
        command = ["convert", *model, "--to", "onnx", "--precision", precision, "--no-speed", "--json", "-o", out]
        ran = fresh_edgeopt(*command)
        assert ran.code == 0, ran.err
        (artifact,) = ran.json["artifacts"]
        assert artifact["cached"] == (len(sums) == 2)
        sums.append(artifact["sha256"])
    assert sums[0] == sums[2] != sums[1]


def test_a_damaged_cache_entry_is_made_anew(fresh_edgeopt, tiny, tmp_path):
    arguments = ["convert", *tiny, "--to", "onnx", "--json", "-v", "-o", tmp_path / "bundle"]
    first = fresh_edgeopt(*arguments)
    assert "onnx-fp32.log" in first.err, "-v shows the converters' own output"
    kept = list((tmp_path / "own-cache").rglob("*.onnx"))
    assert len(kept) == 1
    content = bytearray(kept[0].read_bytes())
    content[-20] ^= 0xFF
    kept[0].write_bytes(content)
    second = fresh_edgeopt(*arguments)
    assert second.code == 0
    artifact = second.json["artifacts"][0]
    assert not artifact["cached"] and artifact["sha256"] == first.json["artifacts"][0]["sha256"]
    assert fresh_edgeopt.leftovers() == []


def test_a_folder_of_someone_else_is_refused_before_any_work(edgeopt, tiny, tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    ran = edgeopt("convert", *tiny, "--to", "onnx", "-o", tmp_path)
    assert ran.code == 1 and "is not empty and holds no edgeopt bundle" in ran.error
    assert ran.seconds < 20 and [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["convert"], "Missing argument 'MODEL'"),
        (["convert", "none.onnx"], r"none\.onnx: no such file"),
        (["convert", "none.yaml", "--to", "onxx"], "unknown format 'onxx'; did you mean 'onnx'"),
        (["convert", "none.yaml", "--precision", "int8"], "unknown precision 'int8'"),
        (["convert", "none.yaml", "--target", "pixel8"], "unknown target 'pixel8'; did you mean 'pixel-8'"),
        (["convert", "none.yaml", "--input-shape", "1,a"], "expected integers such as 1,3,224,224"),
        (["convert", "none.yaml", "--input-shape", "1,0"], "every dimension must be at least 1"),
        (["convert", "none.yaml", "--samples", "0"], "Invalid value for '--samples'"),
        (["convert", "none.yaml", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["convert", "none.yaml", "--timeout", "-1"], "must be positive"),
        (["convert", "none.yaml", "--memory", "0"], "must be positive"),
        (["convert", "none.yaml", "--outptu", "x"], "No such option"),
        (["convrt"], "no command 'convrt'; did you mean 'convert'"),
        (["verify", "none.onnx", "--against", "x"], r"none\.onnx: no such file"),
        (["verify", "README.md", "--against", "x"], "not an artifact that edgeopt can execute"),
        (["inspect", "none.pte"], r"none\.pte: no such file"),
        (["targets", "pixel"], "unknown target 'pixel'"),
    ],
)
@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_wrong_request_is_one_line_and_exit_code_2(edgeopt, arguments, told, json_wanted):
    if json_wanted and arguments[0] == "convrt":
        arguments = [*arguments[:1]]
    ran = edgeopt(*arguments, *(["--json"] if json_wanted else []))
    assert ran.code == 2 and re.search(told, ran.error), ran.err
    if json_wanted:
        assert ran.json["exit_code"] == 2 and re.search(told, ran.json["error"])
    else:
        assert ran.out == ""


HALF = """
class Half(nn.Module):
    def forward(self, x):
        values, _ = torch.linalg.eigh(x @ x.transpose(1, 2))
        return values

def build():
    return Half()
"""


def test_an_unsupported_operator_is_named_and_nothing_is_written(edgeopt, write_model, tmp_path):
    out = tmp_path / "out"
    ran = edgeopt(
        "convert", f"{write_model('half', HALF)}:build", "--input-shape", "1,4,4", "--to", "onnx", "--json", "-o", out
    )
    assert ran.code == 1 and ran.error.startswith("no artifact could be made: ")
    assert "linalg_eigh" in ran.error and len(ran.error) < 900
    assert ran.json["exit_code"] == 1 and ran.json["failures"][0]["format"] == "onnx"
    assert not out.exists()


NAN = """
class Nan(nn.Module):
    def forward(self, x):
        return torch.log(x.clamp(max=-1.0)) if False else x.mean(1) * float("nan")

def build():
    return Nan()
"""


def test_outputs_that_are_no_numbers_fail(edgeopt, write_model, tmp_path):
    model = f"{write_model('nan', NAN)}:build"
    ran = edgeopt("convert", model, "--input-shape", "1,4,4", "--to", "onnx", "--json", "-o", tmp_path / "out")
    assert ran.code == 1
    parity = ran.json["artifacts"][0]["parity"]
    assert not parity["passed"] and "NaN" in parity["reason"]


LARGE = """
class Large(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 4)
        self.up.weight.data.mul_(1.8e5)
        self.down.weight.data.mul_(1e-3)

    def forward(self, x):
        return self.down(self.up(x))

def build():
    return Large()
"""


@pytest.mark.parametrize("precision", ["fp16", "weight_only_wi8_afp32"])
def test_values_beyond_float16_are_told_as_such(edgeopt, write_model, tmp_path, precision):
    arguments = ["--input-shape", "1,8", "--to", "coreml", "--precision", f"fp32,{precision}", "--json"]
    ran = edgeopt("convert", f"{write_model('large', LARGE)}:build", *arguments, "-o", tmp_path / "out")
    assert ran.code == 1, ran.err
    sound, half = ran.json["artifacts"]
    assert sound["parity"]["passed"] and not half["parity"]["passed"]
    assert "65504" in half["parity"]["reason"]


COLLAPSE = """
class Collapse(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 6, 1, bias=False), nn.Linear(6, 4, bias=False)
        # One channel is thousands of times the others, and no answer depends on it.
        self.conv.weight.data[0] = 3000
        self.head.weight.data[:, 0] = 0

    def forward(self, image):
        return self.head(self.conv(image).mean((2, 3)))

def build():
    return Collapse()
"""


def test_a_model_that_int8_ruins_fails_and_its_evidence_is_kept(edgeopt, write_model, tmp_path):
    code = write_model("collapse", COLLAPSE)
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).standard_normal((30, 1, 6, 6)).astype(np.float32))
    (code.parent / "card.yaml").write_text(
        "source: collapse.py:build\ntask: image-classification\ninputs: [{name: image, shape: [1, 1, 6, 6]}]\n"
    )
    out = tmp_path / "out"
    arguments = [
        "--data",
        tmp_path / "data.npz",
        "--samples",
        "10",
        "--to",
        "onnx",
        "--precision",
        "fp32,static_wi8_ai8",
    ]
    ran = edgeopt("convert", code.parent / "card.yaml", *arguments, "--json", "-o", out)
    assert ran.code == 1, ran.err
    sound, ruined = ran.json["artifacts"]
    assert sound["parity"]["passed"] and not ruined["parity"]["passed"] and ran.json["failures"] == []
    assert "below" in ruined["parity"]["reason"]
    kept = np.load(out / "evidence" / f"{ruined['path']}.npz")
    assert {"input.image", "reference.output", "actual.output"} <= set(kept)
    assert f"evidence/{ruined['path']}.npz" in ran.json["files"]


@pytest.mark.parametrize("name", ["cache", "output"])
def test_a_place_that_cannot_be_written_is_one_line(edgeopt, tiny, tmp_path, name):
    (tmp_path / "file").write_text("")
    command = edgeopt.with_environment(EDGEOPT_CACHE=str(tmp_path / "file" / "c")) if name == "cache" else edgeopt
    out = tmp_path / "out" if name == "cache" else tmp_path / "file" / "out"
    ran = command("convert", *tiny, "--to", "onnx", "-o", out)
    assert ran.code in (1, 2) and "cannot be written" in ran.error and str(tmp_path) in ran.error


def test_a_worker_over_its_limits_is_one_line(edgeopt, tiny, tmp_path):
    ran = edgeopt("convert", *tiny, "--to", "onnx", "--timeout", "0.3", "--json", "-o", tmp_path / "out")
    assert ran.code == 1 and "no result within 0.3 s; raise --timeout" in ran.error
    assert not (tmp_path / "out").exists() and ran.json["exit_code"] == 1
    ran = edgeopt("convert", *tiny, "--to", "onnx", "--memory", "0.05", "-o", tmp_path / "out")
    assert ran.code == 1 and "over its limit of 51 MiB; raise --memory" in ran.error


CRASH = """
import ctypes

def build():
    print("NOISE of the model", flush=True)
    ctypes.string_at(0)
"""


def test_a_crash_is_one_line_with_the_log_and_the_old_bundle_stays(edgeopt, bundle, write_model, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(bundle[0], out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    ran = edgeopt("convert", f"{write_model('crash', CRASH)}:build", "--input-shape", "1,2", "-o", out)
    assert ran.code == 1 and "the worker was killed by SIGSEGV (log: " in ran.error
    assert "NOISE" not in ran.out + ran.err
    log = re.search(r"\(log: (.*)\)", ran.error).group(1)
    assert "NOISE of the model" in Path(log).read_text()
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_malicious_checkpoint_runs_nothing(edgeopt, tmp_path, write_model):
    import os
    import pickle

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/pwned",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload()))
    arch = write_model("arch", "def build():\n    return nn.Linear(2, 2)\n")
    ran = edgeopt("convert", tmp_path / "evil.pth", "--arch", f"{arch}:build", "--input-shape", "1,2", "--json")
    assert ran.code == 1 and "evil.pth" in ran.error and ran.json["error"] == ran.error
    assert not (tmp_path / "pwned").exists()


SLOW = """
import time

def build():
    open(__file__ + ".started", "w").close()
    time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
@pytest.mark.parametrize("json_wanted", [False, True])
def test_stopping_while_the_model_loads(fresh_edgeopt, write_model, no_orphans, tmp_path, number, json_wanted):
    code = write_model("slow", SLOW)
    arguments = ["convert", f"{code}:build", "--input-shape", "1,2", "-o", tmp_path / "out"]
    process, mark = fresh_edgeopt.start(*arguments, *(["--json"] if json_wanted else []))
    deadline = time.monotonic() + 30
    while not code.with_name("slow.py.started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=15)
    no_orphans(mark, 5)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    if json_wanted:
        assert json.loads(out)["exit_code"] == 130
    else:
        assert out == ""
    assert not (tmp_path / "out").exists() and fresh_edgeopt.leftovers() == []


def test_a_reader_that_goes_away_is_no_traceback(edgeopt):
    process, _ = edgeopt.start("targets", "--json")
    process.stdout.close()
    process.wait(20)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_targets(edgeopt):
    found = edgeopt("targets", "--json").json["targets"]
    assert {"linux-x86_64", "raspberry-pi-5", "pixel-8", "iphone-15"} <= {t["name"] for t in found}
    assert edgeopt("targets", "pixel-8", "--json").json["layout"] == "NHWC"
    assert "pixel-8" in edgeopt("targets").out
