"""Conformance and speed of the Core ML reference evaluator against PyTorch.

    python benchmarks/coreml_evaluator/run.py                 # every model that has no record yet
    python benchmarks/coreml_evaluator/run.py resnet18 unet --redo

One process for each model. Records go to `results.json` as they are made; `results.md` is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FP32_DB, FP16_DB, SLOWDOWN = 100.0, 45.0, 2.0


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Convert one model in both precisions, compare and time it."""
    import torch
    import zoo

    from edgeopt.mil import Evaluator, load_package, snr_db

    torch.set_num_threads(1)
    case = zoo.CASES[name]()
    inputs = {key: value.numpy() for key, value in case.inputs.items()}
    reference = _reference(case)
    record: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        for label, half in (("fp32", False), ("fp16", True)):
            path = Path(folder, f"{label}.mlpackage")
            started = time.perf_counter()
            zoo.convert(case, path, half)
            record[f"{label}_convert_s"] = round(time.perf_counter() - started, 1)
            started = time.perf_counter()
            program = load_package(path)
            evaluator = Evaluator(program, label)
            record[f"{label}_load_s"] = round(time.perf_counter() - started, 2)
            feed = dict(zip((spec.name for spec in program.inputs), inputs.values(), strict=True))
            if case.inputs.keys() == {spec.name for spec in program.inputs}:
                feed = inputs
            state = evaluator.make_state()
            values = [evaluator(feed, state=state) for _ in range(case.calls)]
            record[f"{label}_db"] = round(
                min(
                    _cap(snr_db(r, v))
                    for rs, vs in zip(reference, values, strict=True)
                    for r, v in zip(rs, vs.values(), strict=True)
                ),
                1,
            )
            record[f"{label}_operators"] = len(evaluator.steps)
            if not half:
                record.update(_time(case, evaluator, feed, repeats))
    return record


def _cap(value: float) -> float:
    """Equal bit for bit counts as 200 dB."""
    return min(value, 200.0)


def _reference(case: Any) -> list[list[Any]]:
    """Outputs of consecutive calls of the PyTorch module."""
    import torch

    calls = []
    for buffer in case.states:
        case.module.get_buffer(buffer).zero_()
    with torch.inference_mode():
        for _ in range(case.calls):
            result = case.module(*case.inputs.values())
            parts = result if isinstance(result, tuple | list) else (result,)
            calls.append([part.clone().numpy() for part in parts if isinstance(part, torch.Tensor)])
    for buffer in case.states:
        case.module.get_buffer(buffer).zero_()
    return calls


def _time(case: Any, evaluator: Any, feed: dict[str, Any], repeats: int) -> dict[str, float]:
    """Time eager PyTorch and the evaluator in turn; the ratio is the median of the pairs'."""
    import torch

    examples = tuple(case.inputs.values())
    pairs = []
    with torch.inference_mode():
        for index in range(repeats + 2):
            started = time.perf_counter()
            case.module(*examples)
            middle = time.perf_counter()
            evaluator(feed)
            ended = time.perf_counter()
            if index >= 2:
                pairs.append((middle - started, ended - middle))
    return {
        "eager_ms": round(1e3 * statistics.median(a for a, _ in pairs), 2),
        "evaluator_ms": round(1e3 * statistics.median(b for _, b in pairs), 2),
        "ratio": round(statistics.median(b / a for a, b in pairs), 2),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as Markdown."""
    lines = [
        "# Core ML reference evaluator: conformance and speed",
        "",
        f"fp32 package against PyTorch (at least {FP32_DB:.0f} dB), fp16 package with every result rounded to half"
        f" precision (at least {FP16_DB:.0f} dB), time of one call on one thread against eager PyTorch (at most"
        f" {SLOWDOWN:g} times for networks of convolution and attention), median of pairs. 200 dB stands for equal bit"
        " for bit. A GRU becomes a `while_loop` of small operators in coremltools, which is what its time shows; models"
        " of less than a millisecond show the cost of checking inputs. Written by `run.py`.",
        "",
        "| model | fp32, dB | fp16, dB | operators | eager, ms | evaluator, ms | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        if "error" in r:
            lines.append(f"| {r['model']} | {r['error']} | | | | | |")
            continue
        lines.append(
            f"| {r['model']} | {r['fp32_db']} | {r['fp16_db']} | {r['fp32_operators']} | {r['eager_ms']}"
            f" | {r['evaluator_ms']} | {r['ratio']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names from zoo.py; all where none are given")
    parser.add_argument("--redo", action="store_true", help="measure again what has a record")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.json and results.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("RECORD " + json.dumps(measure(args.one, args.repeats)))
        return 0

    sys.path.insert(0, str(HERE))
    import zoo

    path = args.out / "results.json"
    done = {r["model"]: r for r in json.loads(path.read_text())["records"]} if path.exists() else {}
    for name in args.models or zoo.CASES:
        if name in done and "error" not in done[name] and not args.redo:
            continue
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--repeats", str(args.repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
        lines = [line for line in result.stdout.splitlines() if line.startswith("RECORD ")]
        if lines:
            done[name] = json.loads(lines[-1].removeprefix("RECORD "))
        else:
            done[name] = {"model": name, "error": (result.stderr.strip().splitlines() or ["died"])[-1][:200]}
        print(done[name], flush=True)
        records = [done[key] for key in zoo.CASES if key in done]
        document = {"python": platform.python_version(), "machine": platform.machine(), "records": records}
        path.write_text(json.dumps(document, indent=1) + "\n")
    (args.out / "results.md").write_text(table([done[key] for key in zoo.CASES if key in done]))
    failed = [r["model"] for r in done.values() if "error" in r or r["fp32_db"] < FP32_DB or r["fp16_db"] < FP16_DB]
    print("below the thresholds:", ", ".join(failed) or "none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
