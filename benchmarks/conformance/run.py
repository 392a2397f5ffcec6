"""Convert every case of `cases.yaml` to every format and keep one record each; a run that was stopped goes on.

    python benchmarks/conformance/run.py --limit 5
    python benchmarks/conformance/run.py --only yolo --precision fp32,fp16,dynamic_wi8_afp32
    python benchmarks/conformance/report.py

One `edgeopt convert` process per case. A record of the same case, precisions and versions is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cases import HERE, ROOT, Case, read_cases

PACKAGES = (
    *("torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "coremltools"),
    *("executorch", "torchao", "timm", "transformers", "ultralytics", "tensorflow"),
)
FORMATS = ("onnx", "litert", "coreml", "executorch")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def convert(case: Case, precisions: str, samples: int, jobs: int, timeout: float) -> dict[str, Any]:
    """Return the cells of one case: by format and precision, an SNR or a reason."""
    started = time.monotonic()
    wanted = [(f, p) for p in precisions.split(",") for f in FORMATS]
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(Path(sys.executable).with_name("edgeopt")), "convert", case.source, "--precision", precisions]
        command += ["--samples", str(samples), "--no-speed", "--no-cache", "--json", "-q", "-o", f"{scratch}/bundle"]
        command += ["--jobs", str(jobs)]
        shapes = [case.shape] if isinstance(case.shape, str) else case.shape or []
        command += [part for shape in shapes for part in ("--input-shape", shape)]
        command += ["--arch", case.arch] if case.arch else []
        command += ["--data", case.data] if case.data else []
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
            document = json.loads(ran.stdout)
        except subprocess.TimeoutExpired:
            document = {"error": f"took more than {timeout:.0f} s"}
        except ValueError:
            document = {"error": f"edgeopt ended with {ran.returncode}: {ran.stderr.strip()[-300:]}"}
    cells: dict[str, dict[str, Any]] = {}
    for artifact in document.get("artifacts", ()):
        parity = artifact["parity"]
        cells[f"{artifact['format']} {artifact['precision']}"] = {
            "snr_db": parity["snr_db"],
            "cosine": parity["cosine"],
            "agreement": parity["agreement"],
            "size_bytes": artifact["size_bytes"],
            "passed": parity["passed"],
            "reason": parity["reason"],
        }
    for failure in document.get("failures", ()):
        cells[f"{failure['format']} {failure['precision']}"] = {"snr_db": None, "reason": failure["reason"]}
    for form, precision in wanted:
        reason = document.get("error", "no record of it")
        cells.setdefault(f"{form} {precision}", {"snr_db": None, "reason": reason.replace(str(ROOT.parent), "")})
    parameters = document.get("model", {}).get("parameters")
    return {"parameters": parameters, "cells": cells, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose family or name holds this")
    parser.add_argument("--limit", type=int, help="run at most so many that have no record yet")
    parser.add_argument("--precision", default="fp32,fp16,dynamic_wi8_afp32")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="formats made at a time")
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--again", action="store_true", help="also those with a record that holds a failure")
    parser.add_argument("--records", type=Path, default=HERE / "records")
    arguments = parser.parse_args()
    arguments.records.mkdir(exist_ok=True)
    done = 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        for case in read_cases(Path(scratch)):
            if arguments.only not in f"{case.family} {case.name}":
                continue
            path = arguments.records / f"{case.name}.json"
            key = {"precision": arguments.precision, "shape": case.shape, "versions": versions()}
            if _finished(path, key, again=arguments.again):
                continue
            if arguments.limit is not None and done >= arguments.limit:
                break
            head = {"name": case.name, "family": case.family, **key}
            if case.absent:
                record = {"parameters": None, "cells": {}, "absent": case.absent, "seconds": 0}
            else:
                done += 1
                record = convert(case, arguments.precision, arguments.samples, arguments.jobs, arguments.timeout)
            temporary = path.with_suffix(".partial")
            temporary.write_text(json.dumps(head | record, indent=1) + "\n")
            temporary.replace(path)
            good = sum(bool(c.get("passed")) for c in record["cells"].values())
            print(
                f"{case.family} {case.name}: {good} of {len(record['cells'])} passed, {record['seconds']} s", flush=True
            )


def _finished(path: Path, key: dict[str, Any], *, again: bool) -> bool:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if any(record.get(k) != v for k, v in key.items()) or record.get("absent"):
        return False
    return not again or all(c.get("passed") for c in record["cells"].values())


if __name__ == "__main__":
    main()
