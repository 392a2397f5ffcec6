"""What calibration costs: EfficientNet-Lite0 on 100 images, time against a plain forward pass, and peak memory.

Plain and observed passes are interleaved image by image in one process on one thread, so that whatever else the machine
does falls on both alike. Scales are computed once, behind the last image, and count as calibration. Memory is the most
that a process which does nothing else has held, imports, program and images included.

    .venv/bin/python benchmarks/calibration/measure.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = ROOT / "models/efficientnet-lite0"
DATA = ROOT.parent / "shared/data/imagenet-sample/labels.csv"
ESTIMATORS = ("minmax", "percentile", "mse", "entropy")


def measure(estimator: str, images: int, data: Path) -> dict[str, Any]:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    from edgeopt.core.card import read_card
    from edgeopt.core.model import TensorSpec
    from edgeopt.data import open_data
    from edgeopt.sources.from_code import build
    from edgeopt.stages.fold_batch_norm import fold_batch_norm
    from edgeopt.stages.observers import RangeObserver
    from edgeopt.stages.quantizer import EdgeQuantizer

    torch.set_num_threads(1)
    spec = TensorSpec("image", (1, 3, 224, 224), "float32", "NCHW")
    source = open_data(str(data), read_card(MODEL / "card.yaml"), (spec,), MODEL)
    program = torch.export.export(build(f"{MODEL}/build.py:build").eval(), (torch.rand(spec.shape),))
    plain, observed = program.module(), program.module()
    fold_batch_norm(plain)
    fold_batch_norm(observed)
    prepared = prepare_pt2e(observed, EdgeQuantizer(estimator=estimator))
    seconds = {"plain": 0.0, "observed": 0.0}
    with torch.no_grad():
        for module in (plain, prepared):
            module(torch.zeros(spec.shape))
        for index in range(images):
            image = torch.from_numpy(source[index].inputs["image"])[None]
            for name, module in (("plain", plain), ("observed", prepared)):
                start = time.process_time()
                module(image)
                seconds[name] += time.process_time() - start
    start = time.process_time()
    observers = {id(m): m for m in prepared.modules() if isinstance(m, RangeObserver)}
    for observer in observers.values():
        observer.calculate_qparams()
    scales = time.process_time() - start
    return {
        "estimator": estimator,
        "images": images,
        "observers": len(observers),
        "plain_s": round(seconds["plain"], 2),
        "observed_s": round(seconds["observed"], 2),
        "scales_s": round(scales, 2),
        "ratio": round((seconds["observed"] + scales) / seconds["plain"], 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "# What calibration costs",
        "",
        f"EfficientNet-Lite0, {records[0]['images']} images, one thread, processor time; "
        "`benchmarks/calibration/measure.py`. The limits are a ratio of 2 and 2048 MiB.",
        "",
        "| estimator | plain pass (s) | with observers (s) | scales (s) | ratio | peak memory (MiB) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['estimator']} | {r['plain_s']} | {r['observed_s']} | {r['scales_s']} | {r['ratio']} | {r['peak_mib']} |"
        for r in records
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", choices=ESTIMATORS, help="measure one estimator and print its record")
    asked = parser.parse_args()
    if asked.only:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchao's own
            print(json.dumps(measure(asked.only, asked.images, asked.data.resolve())))
        return
    records = []
    for estimator in ESTIMATORS:
        command = [sys.executable, __file__, "--only", estimator, "--images", str(asked.images)]
        command += ["--data", str(asked.data.resolve())]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        records.append(json.loads(ran.stdout.splitlines()[-1]))
        print(records[-1])
    (HERE / "result.json").write_text(json.dumps(records, indent=1) + "\n")
    (HERE / "result.md").write_text(table(records))


if __name__ == "__main__":
    main()
