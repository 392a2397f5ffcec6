"""The worker's promise: whatever a task does, the parent gets a result or one line, and no process stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

from edgeopt.core.errors import (
    CancelledRunError,
    ConversionError,
    MissingBackendError,
    OutputError,
    SourceError,
    WorkerError,
)
from edgeopt.worker import Limits, Worker, call, report

TASKS = """
import ctypes, os, signal, subprocess, sys, time

from edgeopt.core.errors import MissingBackendError, SourceError
from edgeopt.worker import report

def add(a, b):
    return {"sum": a + b, "pid": os.getpid()}

def chatter():
    print("python stdout")
    print("python stderr", file=sys.stderr)
    libc = ctypes.CDLL(None)
    libc.puts(b"c stdout")
    libc.fflush(None)
    os.write(2, b"raw stderr\\n")
    subprocess.run(["echo", "from a grandchild"], check=True)

def environment(name):
    return os.environ.get(name)

def steps(count):
    for i in range(count):
        report(f"step {i}\\nof many")
        time.sleep(0.15)

def fail(message):
    raise ValueError(message)

def fail_chained():
    try:
        raise KeyError("conv2d_weird")
    except KeyError as error:
        raise RuntimeError("\\n" + "=" * 40 + "\\nlots of\\nnoise\\n" * 100) from error

def wrong_file():
    raise SourceError("net.pt: damaged")

def wrapped():
    try:
        raise ValueError("inner words")
    except ValueError as error:
        raise SourceError("net.pt: damaged") from error

def missing():
    raise MissingBackendError("coremltools", "coreml")

def disk_full():
    raise OSError(28, "No space left on device", "/somewhere/net.onnx")

def segfault():
    ctypes.string_at(0)

def abort():
    os.abort()

def leave(code):
    os._exit(code)

def system_exit():
    sys.exit(3)

def forever():
    while True:
        pass

def stuck_in_c():
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter's lock

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)

def with_grandchildren(file, stuck):
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sleep", "600"], start_new_session=not stuck)
    open(file, "w").close()
    ctypes.PyDLL(None).sleep(600) if stuck else time.sleep(600)

def crash_with_grandchild(file):
    subprocess.Popen(["sleep", "600"])
    os.kill(os.getpid(), signal.SIGKILL)

def eat(mebibytes):
    block = bytearray(mebibytes << 20)
    for i in range(0, len(block), 4096):
        block[i] = 1
    time.sleep(600)

def no_json():
    return object()
"""


@pytest.fixture
def mark(no_orphans):
    value = uuid.uuid4().hex
    yield value
    no_orphans(value, 3)


@pytest.fixture
def environment(tmp_path, mark):
    (tmp_path / "tasks_of_test.py").write_text(TASKS)
    return {"PYTHONPATH": str(tmp_path), "EDGEOPT_TEST_RUN": mark}


@pytest.fixture
def run(environment, tmp_path):
    def run(task, limits=None, **arguments):
        return call(
            f"tasks_of_test:{task}",
            arguments,
            what=f"doing {task}",
            log=tmp_path / "logs" / "task.log",
            failure=ConversionError,
            environment=environment,
            limits=limits,
        )

    return run


@pytest.fixture
def log(tmp_path):
    return tmp_path / "logs" / "task.log"


def one_line(error):
    return len(str(error).splitlines()) == 1


def test_a_result_comes_back(run):
    assert run("add", a=2, b=40)["sum"] == 42


def test_everything_a_task_prints_goes_to_the_log(run, log, capfd):
    run("chatter")
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    text = log.read_text()
    for line in ("python stdout", "python stderr", "c stdout", "raw stderr", "from a grandchild"):
        assert line in text


def test_progress_reaches_the_parent_as_lines(environment, tmp_path):
    told = []
    call(
        "tasks_of_test:steps",
        {"count": 4},
        what="w",
        log=tmp_path / "log",
        environment=environment,
        progress=told.append,
    )
    assert told[:2] == ["step 0 of many", "step 1 of many"]


def test_report_outside_a_worker_does_nothing():
    report("nobody listens")


def test_an_exception_becomes_one_line_of_the_type_asked_for(run, log):
    with pytest.raises(ConversionError) as caught:
        run("fail", message="first line\nsecond line")
    assert str(caught.value) == f"doing fail: ValueError: first line (log: {log})"
    assert "Traceback" in log.read_text() and "second line" in log.read_text()


def test_the_root_cause_is_told_not_the_noise(run):
    with pytest.raises(ConversionError, match="KeyError: 'conv2d_weird'") as caught:
        run("fail_chained")
    assert one_line(caught.value) and len(str(caught.value)) < 600


def test_edgeopts_own_errors_keep_their_type_and_words(run, log):
    with pytest.raises(SourceError) as caught:
        run("wrong_file")
    assert str(caught.value) == "net.pt: damaged"
    with pytest.raises(SourceError) as caught:
        run("wrapped")
    assert str(caught.value) == f"net.pt: damaged (log: {log})"
    with pytest.raises(MissingBackendError, match=r'coremltools is not installed: pip install "edgeopt\[coreml\]"'):
        run("missing")


def test_a_tool_that_calls_exit_has_failed(run):
    with pytest.raises(ConversionError, match="doing system_exit: SystemExit: 3"):
        run("system_exit")


def test_a_full_disk_is_told_as_that(run):
    with pytest.raises(OutputError, match=r"/somewhere/net\.onnx: no space left on the disk"):
        run("disk_full")


@pytest.mark.parametrize(
    ("task", "arguments", "told"),
    [
        ("segfault", {}, "killed by SIGSEGV"),
        ("abort", {}, "killed by SIGABRT"),
        ("leave", {"code": 0}, "exit code 0 and no result"),
        ("leave", {"code": 7}, "exit code 7 and no result"),
        ("no_json", {}, "exit code 1 and no result"),
    ],
)
def test_a_crash_is_one_line_with_the_log(run, log, task, arguments, told):
    with pytest.raises(WorkerError, match=told) as caught:
        run(task, **arguments)
    assert one_line(caught.value) and str(caught.value).startswith(f"doing {task}: ")
    assert caught.value.log == str(log) and log.exists()


@pytest.mark.parametrize("task", ["forever", "stuck_in_c", "deaf"])
def test_endless_work_is_ended_at_the_timeout(run, task):
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"no result within 0\.6 s; raise --timeout"):
        run(task, Limits(timeout_s=0.6))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("stuck", [False, True])
def test_the_timeout_ends_grandchildren_too(run, tmp_path, mark, no_orphans, stuck):
    with pytest.raises(WorkerError, match="no result within"):
        run("with_grandchildren", Limits(timeout_s=1.5), file=str(tmp_path / "started"), stuck=stuck)
    assert (tmp_path / "started").exists()
    no_orphans(mark, 1)


def test_a_crashed_workers_children_end_with_it(run, tmp_path, mark, no_orphans):
    with pytest.raises(WorkerError, match="killed by SIGKILL, perhaps by the kernel for want of memory"):
        run("crash_with_grandchild", file=str(tmp_path / "started"))
    no_orphans(mark, 1)


def test_the_memory_limit_is_told_with_figures(run):
    with pytest.raises(WorkerError, match=r"used \d+ MiB, over its limit of 300 MiB; raise --memory"):
        run("eat", Limits(memory_bytes=300 << 20), mebibytes=500)


def test_a_worker_is_kept_between_calls_and_replaced_after_a_crash(environment, tmp_path):
    with Worker(environment=environment, limits=Limits(timeout_s=1)) as worker:

        def pid():
            return worker.call("tasks_of_test:add", {"a": 1, "b": 1}, what="w", log=tmp_path / "log")["pid"]

        first = pid()
        assert pid() == first
        with pytest.raises(WorkerError):
            worker.call("tasks_of_test:fail", {"message": "x"}, what="w", log=tmp_path / "log")
        assert pid() == first, "an exception is no crash"
        for task in ("segfault", "forever"):
            with pytest.raises(WorkerError):
                worker.call(f"tasks_of_test:{task}", {}, what="w", log=tmp_path / "log")
            assert not psutil.pid_exists(first)
            second = pid()
            assert second != first
            first = second
    assert not psutil.pid_exists(first)


def test_each_call_has_its_own_log(environment, tmp_path):
    with Worker(environment=environment) as worker:
        for name in ("first call", "second call"):
            with pytest.raises(WorkerError):
                worker.call("tasks_of_test:fail", {"message": name}, what="w", log=tmp_path / name)
    assert "ValueError: first call" in (tmp_path / "first call").read_text()
    assert "first call" not in (tmp_path / "second call").read_text()


def test_a_dead_idle_worker_is_replaced(environment, tmp_path):
    with Worker(environment=environment) as worker:
        first = worker.call("tasks_of_test:add", {"a": 1, "b": 1}, what="w", log=tmp_path / "log")["pid"]
        os.kill(first, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first)] if psutil.pid_exists(first) else [], timeout=2)
        assert worker.call("tasks_of_test:add", {"a": 1, "b": 1}, what="w", log=tmp_path / "log")["sum"] == 2


def test_cancelling_from_another_thread(environment, tmp_path):
    cancel = threading.Event()
    timer = threading.Timer(0.7, cancel.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(CancelledRunError, match="w: cancelled"):
        call("tasks_of_test:stuck_in_c", {}, what="w", log=tmp_path / "log", environment=environment, cancel=cancel)
    assert time.monotonic() - started < 4


def test_workers_of_several_threads_do_not_disturb_each_other(environment, tmp_path):
    results = {}

    def work(index):
        try:
            task = "segfault" if index % 2 else "add"
            arguments = {} if index % 2 else {"a": index, "b": 0}
            results[index] = call(
                f"tasks_of_test:{task}", arguments, what="w", log=tmp_path / f"log{index}", environment=environment
            )["sum"]
        except WorkerError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == i for i in (0, 2, 4)) and all("SIGSEGV" in results[i] for i in (1, 3, 5))


def test_the_variable_that_switches_safe_loading_off_is_scrubbed(run, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert run("environment", name="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") is None


def test_a_workers_temporary_files_end_with_it(run, log):
    scratch = Path(run("environment", name="TMPDIR"))
    assert scratch.name.startswith("edgeopt-worker-") and not scratch.exists()


def test_an_unknown_task_is_an_error_of_ours(tmp_path):
    with pytest.raises(WorkerError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        call("no_such_module:f", {}, what="w", log=tmp_path / "log")


PARENT = """
import sys, threading
from pathlib import Path
from edgeopt.worker import call

folder = Path(sys.argv[1])

def work():
    call("tasks_of_test:with_grandchildren", {"file": str(folder / "started"), "stuck": sys.argv[2] == "stuck"},
         what="w", log=folder / "log")

if sys.argv[3] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
@pytest.mark.parametrize("stuck", ["stuck", "free"])
def test_however_the_parent_dies_nothing_stays(environment, tmp_path, mark, no_orphans, marked_processes, end, stuck):
    """`stuck` holds the interpreter's lock in the worker; its grandchildren share its process group."""
    (tmp_path / "parent.py").write_text(textwrap.dedent(PARENT))
    place = "main" if end is signal.SIGINT else "thread"
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path), stuck, place],
        env=os.environ | environment | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(end)
    parent.wait(10)
    if stuck == "free":  # its second grandchild left the group on purpose, out of a killed parent's reach
        for process in marked_processes(mark):
            if process.name() == "sleep" and os.getsid(process.pid) == process.pid:
                process.kill()
    no_orphans(mark, 3)
