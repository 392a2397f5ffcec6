"""What the harness adds to a call: the runner's own loop against a bare one, in turns in the same process.

For a model of about 1 ms and for one that does next to nothing. `reported` is what the runner would say a call takes;
`elapsed` is what its loop really takes, clocks and bookkeeping included.

    python benchmarks/harness_overhead/measure.py --launches 10
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "gate_power"))
MODELS = {"1 ms": 30, "tiny": 1}
BLOCKS = 60
BLOCK_S = 0.02


def one_launch(path: str) -> dict[str, Any]:
    """Return nanoseconds a call: of the bare loop, as the harness reports them, and of the harness' loop itself."""
    import numpy as np

    from edgeopt.bench.statistics import trimmed_mean
    from edgeopt.devices import runner

    loaded = runner.OnnxRuntime(1).load(path, runner.Feed(None, 0))
    call = loaded.call
    run, arguments = call.func, call.args  # type: ignore[attr-defined]
    _, inner = runner.warm_up(call, 20, 0.3)
    start = time.perf_counter_ns()
    runner.timed(call, 50)
    samples = max(1, int(BLOCK_S * 1e9 / ((time.perf_counter_ns() - start) / 50 * inner)))
    gc.disable()
    bare, reported, elapsed = [], [], []

    def bare_block() -> None:
        start = time.perf_counter_ns()
        for _ in repeat(None, samples * inner):
            run(*arguments)
        bare.append((time.perf_counter_ns() - start) / (samples * inner))

    def harness_block() -> None:
        start = time.perf_counter_ns()
        (taken,) = runner.in_turns([call], [inner], samples, samples, 0.0)
        elapsed.append((time.perf_counter_ns() - start) / (samples * inner))
        reported.append(sum(wall for wall, _ in taken) / (samples * inner))

    for turn in range(BLOCKS):
        for block in (bare_block, harness_block) if turn % 2 else (harness_block, bare_block):
            block()
    means = {n: trimmed_mean(np.array(v)) for n, v in (("bare", bare), ("reported", reported), ("elapsed", elapsed))}
    return {**means, "inner_batch": inner, "calls_per_block": samples * inner}


def measure(launches: int) -> dict[str, Any]:
    from subject import write

    result: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "onnxruntime": version("onnxruntime"),
        "load_at_start": os.getloadavg()[0],
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, layers in MODELS.items():
            path = write(Path(folder) / "net.onnx", layers) if layers > 1 else write_tiny(Path(folder) / "net.onnx")
            found = []
            for number in range(launches):
                ran = subprocess.run(
                    [sys.executable, __file__, "--one", str(path)], capture_output=True, text=True, check=True
                )
                found.append(json.loads(ran.stdout.splitlines()[-1]))
                print(f"{name} {number + 1}/{launches}: {found[-1]}", flush=True)
            result["models"][name] = found
    return result


def write_tiny(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "tiny", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def row(name: str, found: list[dict[str, Any]], what: str) -> str:
    bare = statistics.median(f["bare"] for f in found)
    percent = spanned([100 * (f[what] / f["bare"] - 1) for f in found], 2)
    added = spanned([(f[what] - f["bare"]) / 1000 for f in found], 3)
    return f"| {name} | {what} | {bare / 1000:.2f} µs | {found[0]['inner_batch']} | {percent} % | {added} µs |"


def spanned(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):+.{digits}f} ({min(values):+.{digits}f} to {max(values):+.{digits}f})"


def markdown(result: dict[str, Any]) -> str:
    launches = len(next(iter(result["models"].values())))
    lines = [
        "# What the harness adds to a call",
        "",
        f"`python benchmarks/harness_overhead/measure.py --launches {launches}` on {result['machine']['cpus']} cores, "
        f"load {result['load_at_start']:.1f} at the start, onnxruntime {result['onnxruntime']}, one thread. The "
        f"runner's loop and a bare one in turns, {BLOCKS} blocks of {1000 * BLOCK_S:.0f} ms of each in a launch, "
        "trimmed means; median over launches, in brackets the lowest and highest.",
        "",
        "| model | harness | bare call | calls in a sample | ratio − 1 | added to a call |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in result["models"].items():
        lines += [row(name, found, what) for what in ("reported", "elapsed")]
    lines += ["", "`reported` is the time that the runner gives for a call, `elapsed` the time its loop takes.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_launch(options.one)))
    else:
        measured = measure(options.launches)
        (HERE / "result.json").write_text(json.dumps(measured, indent=2) + "\n")
        (HERE / "result.md").write_text(markdown(measured))
        print((HERE / "result.md").read_text())
