"""How often the latency gate is right: models of equal speed, and one that is 5 % slower by extra layers.

Each gate run is what `edgeopt gate` does for one limit of 1.0: launches in pairs until a verdict holds or the time is
over. Runs are kept one by one in runs.jsonl as they end, so the script goes on where it was stopped; the Markdown is
made of them.

    python benchmarks/gate_power/measure.py --same 300 --slower 60 --hog-same 100 --hog-slower 60
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subject import write

from edgeopt.bench.distributions import proportion_interval
from edgeopt.bench.statistics import compare_measurement
from edgeopt.benchmarking import Request, compare_latency
from edgeopt.devices.local import connect

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
LAYERS, MORE_LAYERS = 40, 42
LIMIT = 1.0
TITLES = {
    "same": "equal models",
    "slower": "5 % more layers",
    "hog_same": "equal models, a busy loop pinned to one core",
    "hog_slower": "5 % more layers, a busy loop pinned to one core",
}


def hog(core: int) -> None:
    os.sched_setaffinity(0, {core})
    parent = os.getppid()
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass


@contextmanager
def loaded(core: int | None) -> Iterator[None]:
    if core is None:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=hog, args=(core,), daemon=True)
    process.start()
    time.sleep(1)
    try:
        yield
    finally:
        process.kill()
        process.join()


def gate(subject: Path, baseline: Path, request: Request, logs: Path) -> dict[str, Any]:
    started = time.monotonic()
    pair = compare_latency(subject, baseline, connect(""), request, logs=logs)
    found = compare_measurement(pair)
    environment = pair.launches[0].environment
    return {
        "gate": found.gate,
        "ratio": round(found.ratio, 5),
        "low": round(found.low, 5),
        "high": round(found.high, 5),
        "spread": round(found.spread, 6),
        "looks": list(pair.looks),
        "pairs": found.pairs,
        "median_ms": round(statistics.median(w for n in pair.launches for w in n.samples[1].wall_ns) / 1e6, 4),
        "seconds": round(time.monotonic() - started, 2),
        "load": environment["load_before"],
        "cpu": environment["cpu"],
        "versions": {n: environment["versions"][n] for n in ("numpy", "onnxruntime")} | {"edgeopt": version("edgeopt")},
    }


def read_runs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def measure(wanted: dict[str, int], request: Request) -> None:
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        baseline = write(Path(folder) / "baseline.onnx", LAYERS)
        subjects = {
            "same": write(Path(folder) / "same.onnx", LAYERS),
            "slower": write(Path(folder) / "slower.onnx", MORE_LAYERS),
        }
        for arm, count in wanted.items():
            done = sum(run["arm"] == arm for run in read_runs())
            if done >= count:
                continue
            with loaded(core if arm.startswith("hog") else None):
                for number in range(done, count):
                    found = gate(subjects[arm.removeprefix("hog_")], baseline, request, Path(folder) / "logs")
                    settings = {"pairs_per_launch": request.pairs, "max_seconds": request.max_seconds}
                    with RUNS.open("a") as sink:
                        sink.write(json.dumps({"arm": arm, **found, **settings}) + "\n")
                    told = f"{found['ratio']:.4f} in {found['seconds']} s, launches {found['looks'][-1]}"
                    print(f"{arm} {number + 1}/{count}: {found['gate']} {told}", flush=True)


def share(count: int, runs: int) -> str:
    low, high = proportion_interval(count, runs)
    return f"{count} = {100 * count / runs:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def markdown(runs: list[dict[str, Any]], request: Request) -> str:
    counts = {arm: sum(r["arm"] == arm for r in runs) for arm in TITLES}
    flags = " ".join(f"--{arm.replace('_', '-')} {count}" for arm, count in counts.items())
    first = runs[0]
    lines = [
        "# How often the latency gate is right",
        "",
        f"`python benchmarks/gate_power/measure.py {flags}` on {first['cpu']}, {os.cpu_count()} cores, "
        f"{platform.system()}, onnxruntime {first['versions']['onnxruntime']}, one thread. Load average at the runs' "
        f"start: median {statistics.median(r['load'] for r in runs):.1f}, "
        f"highest {max(r['load'] for r in runs):.1f}.",
        "",
        f"A stack of {LAYERS} equal convolutions, about {statistics.median(r['median_ms'] for r in runs):.2f} ms a "
        f"call, is the baseline; the slower one has {MORE_LAYERS}. The limit is `max_ratio: {LIMIT}`; a gate run has "
        f"{request.launches} launches of {request.pairs} pairs, and more while it is inconclusive, for at most "
        f"{request.max_seconds:g} s. In brackets: exact 95 % intervals.",
        "",
        "| | runs | fail | inconclusive | pass | median ratio | launch spread | seconds a run, median (highest) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, title in TITLES.items():
        own = [r for r in runs if r["arm"] == arm]
        if not own:
            continue
        words = [share(sum(r["gate"] == word for r in own), len(own)) for word in ("fail", "inconclusive", "pass")]
        ratio = statistics.median(r["ratio"] for r in own)
        spread = statistics.median(r["spread"] for r in own)
        seconds = f"{statistics.median(r['seconds'] for r in own):.1f} ({max(r['seconds'] for r in own):.1f})"
        lines.append(f"| {title} | {len(own)} | {' | '.join(words)} | {ratio:.4f} | {100 * spread:.2f} % | {seconds} |")
    lines += [
        "",
        "Right answers: pass for equal models, fail for 5 % more layers. The spread is the standard deviation of the "
        "log ratio from launch to launch. Not covered: other engines, several threads, other machines, differences "
        "between 2.5 % and 5 %.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for arm, count in (("same", 300), ("slower", 60), ("hog_same", 100), ("hog_slower", 60)):
        parser.add_argument(f"--{arm.replace('_', '-')}", type=int, default=count, metavar="RUNS", help=TITLES[arm])
    parser.add_argument("--max-seconds", type=float, default=8.0, help="of one gate run")
    parser.add_argument("--pairs", type=int, default=40, help="of one launch")
    options = parser.parse_args()
    asked = Request(pairs=options.pairs, max_seconds=options.max_seconds, max_ratio=LIMIT)
    measure({arm: getattr(options, arm) for arm in TITLES}, asked)
    (HERE / "result.md").write_text(markdown(read_runs(), asked))
