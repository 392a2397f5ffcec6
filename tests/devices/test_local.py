"""Every device keeps the protocol; the local one tells of every way in which a runner can die."""

from __future__ import annotations

import json
import os
import threading
import time

import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt import plugins
from edgeopt.core.errors import ArtifactError, CancelledRunError, DeviceError, UsageError
from edgeopt.devices import local, runner
from edgeopt.worker import Limits

# Where each kind of device is reached in this environment.
ADDRESSES = {"local": ""} | json.loads(os.environ.get("EDGEOPT_TEST_DEVICES", "{}"))


def write_onnx(path, factor=2.0):
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    tensor = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1000]) for n in "xy"]
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    graph = helper.make_graph([node], "net", tensor[:1], tensor[1:], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(params=plugins.names("devices"))
def device(request):
    if request.param not in ADDRESSES:
        pytest.skip(f"EDGEOPT_TEST_DEVICES names no address of a {request.param} device")
    found = plugins.find("devices", request.param).connect(ADDRESSES[request.param])
    yield found
    found.cleanup()


def test_the_runner_is_no_device():
    assert "local" in plugins.names("devices")
    assert not {"runner", "__init__"} & set(plugins.names("devices"))


def test_a_device_probes_pushes_runs_and_pulls(device, tmp_path):
    assert device.probe()["cpus"] >= 1
    path = write_onnx(tmp_path / "net.onnx")
    place = device.push(path)
    job = {"artifacts": [{"path": place, "engine": "onnxruntime"}], "samples": 5, "warm_up_seconds": 0.01}
    result = device.run(job, what="timing", timeout_s=60, log=tmp_path / "log")
    assert len(result["launch"]["samples"][0]["wall_ns"]) == 5
    device.pull(place, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()
    with pytest.raises(DeviceError, match=r"nothing\.onnx: no such file"):
        device.push(tmp_path / "nothing.onnx")
    with pytest.raises(DeviceError, match="cannot be copied"):
        device.pull(str(tmp_path / "nothing"), tmp_path / "out")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nonsense")
    job["artifacts"][0]["path"] = device.push(broken)
    with pytest.raises(ArtifactError, match=r"broken\.onnx"):
        device.run(job, what="timing", timeout_s=60, log=tmp_path / "log")
    with pytest.raises(UsageError, match="unknown key 'speed'"):
        device.run({"speed": 1}, what="timing", timeout_s=60, log=tmp_path / "log")
    device.cleanup()


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Run a script in the runner's place."""

    def run(code, **limits):
        script = tmp_path / "script.py"
        script.write_text(f"import os, signal, sys, time\nprint('engine noise', file=sys.stderr, flush=True)\n{code}\n")
        monkeypatch.setattr(runner, "__file__", str(script))
        timeout_s = limits.pop("timeout_s", 30)
        cancel = limits.pop("cancel", threading.Event())
        device = local.LocalDevice(Limits(**limits), cancel)
        return device.run({"threads": 1}, what="timing net.onnx", timeout_s=timeout_s, log=tmp_path / "logs" / "log")

    return run


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            ArtifactError,
            "the engine was killed by SIGSEGV; the artifact may be",
        ),
        ("os.abort()", ArtifactError, "killed by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", DeviceError, "killed by SIGKILL, perhaps by the kernel"),
        ("sys.exit(3)", ArtifactError, "the engine ended with exit code 3 and no result"),
        ("print('hello')", ArtifactError, "exit code 0 and no result"),
        ("print('\\n@@edgeopt-runner@@ {}' * 2)", ArtifactError, "no result"),
    ],
)
def test_a_runner_that_dies_is_one_line_with_a_log(runs, tmp_path, code, kind, told):
    with pytest.raises(kind, match=told) as caught:
        runs(code)
    assert str(caught.value).startswith("timing net.onnx: ")
    assert caught.value.log == str(tmp_path / "logs" / "log")
    assert "engine noise" in (tmp_path / "logs" / "log").read_text()


def test_a_hanging_runner_is_killed_with_what_it_started(runs, tmp_path, no_orphans, monkeypatch):
    monkeypatch.setenv("EDGEOPT_TEST_RUN", "hanging-runner")
    started = time.monotonic()
    with pytest.raises(DeviceError, match="no result within 1 s"):
        runs("os.fork()\ntime.sleep(60)", timeout_s=1)
    assert time.monotonic() - started < 10
    monkeypatch.delenv("EDGEOPT_TEST_RUN")
    no_orphans("hanging-runner")


def test_a_runner_that_eats_memory_is_stopped(runs):
    with pytest.raises(DeviceError, match=r"used \d+ MiB, over its limit of 100 MiB; raise --memory"):
        runs("x = bytearray(300 << 20)\ntime.sleep(60)", memory_bytes=100 << 20)


def test_a_run_can_be_cancelled(runs):
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    with pytest.raises(CancelledRunError, match="cancelled"):
        runs("time.sleep(60)", cancel=cancel)


def test_answers_of_earlier_runs_in_the_log_do_not_count(runs):
    answer = "print('\\n@@edgeopt-runner@@ {\"launch\": 1}')"
    assert runs(answer) == runs(answer) == {"launch": 1}


def test_the_local_device_has_no_address():
    with pytest.raises(UsageError, match="--on local takes no address, found 'host'"):
        local.connect("host")


def test_the_runner_ends_with_its_parent(tmp_path, no_orphans):
    """A killed edgeopt leaves no engine behind that would disturb the next measurement."""
    import subprocess
    import sys

    path = write_onnx(tmp_path / "net.onnx")
    code = (
        "from pathlib import Path\nfrom edgeopt.devices import local\n"
        f"artifacts = [{{'path': {str(path)!r}, 'engine': 'onnxruntime'}}]\n"
        "job = {'artifacts': artifacts, 'samples': 10**9, 'seconds': 60}\n"
        f"local.connect('').run(job, what='x', timeout_s=90, log=Path({str(tmp_path / 'log')!r}))\n"
    )
    environment = os.environ | {"EDGEOPT_TEST_RUN": "parent-of-runner"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    process.kill()
    process.wait()
    no_orphans("parent-of-runner", within_s=5)
